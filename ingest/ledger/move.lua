-- move(from, to, placement, skip, limit): of the due units of a queue that nobody serves any more, a stretch of `limit` after the first `skip`
-- goes to another; with a placement, only those of jobs with it. Returns {how many went, how many stayed}.
local from, to, placement, skip, limit = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local goes = {}
local function may_go(unit)
  local job = split(unit)
  if placement == '' or not job then return true end
  if goes[job] == nil then
    local options = redis.call('HGET', jobkey(job), 'options')
    goes[job] = not options or (decoded(options) or {}).placement == placement
  end
  return goes[job]
end

local went, stayed = 0, 0
for _, unit in ipairs(redis.call('ZRANGE', P .. 'due:' .. from, skip, skip + limit - 1)) do
  if may_go(unit) then
    redis.call('ZREM', P .. 'due:' .. from, unit)
    local rec, job, n = load(unit)
    if rec and rec.s == 'due' then
      rec.q = to
      push_due(unit, job, n, rec)
      save(job, n, rec)
    end
    went = went + 1
  else
    stayed = stayed + 1
  end
end
return {went, stayed}
