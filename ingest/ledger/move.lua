-- move(from, to, limit): due units of a queue that nobody serves any more go to another. Returns how many.
local from, to = ARGV[2], ARGV[3]
local moved = 0
for _, unit in ipairs(redis.call('ZRANGE', P .. 'due:' .. from, 0, tonumber(ARGV[4]) - 1)) do
  redis.call('ZREM', P .. 'due:' .. from, unit)
  local rec, job, n = load(unit)
  if rec and rec.s == 'due' then
    rec.q = to
    push_due(unit, job, n, rec)
    save(job, n, rec)
    moved = moved + 1
  end
end
return moved
