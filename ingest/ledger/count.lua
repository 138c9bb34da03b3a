-- count(store, bytes, add, key, bytes, …): the disk was counted: published files, and of what lies in scratch the bytes of each source.
-- What a unit has in flight it has reserved; the rest is used. `add` is what units had added in all when the counting began: what was
-- published meanwhile counts twice rather than not at all. Returns {used, reserved}.
local store, bytes, mark = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local key = space(store)
local res, before = 0, 0
local all = redis.call('HGETALL', key)
local is = {}
for at = 1, #all, 2 do
  is[all[at]] = all[at + 1]
  local unit = string.match(all[at], '^r:(.*)$')
  if unit then
    local rec = load(unit)
    if rec and rec.s == 'leased' and rec.sp == store then
      res = res + tonumber(all[at + 1])
    else
      redis.call('HDEL', key, all[at], 'p:' .. unit)
    end
  end
end
bytes = bytes + math.max(0, tonumber(is.add or '0') - mark)
for at = 5, #ARGV, 2 do
  local flight = redis.call('GET', P .. 'flight:' .. store .. '/' .. ARGV[at])
  local unit, fence = string.match(flight or '', '^(%S+) (%S+)$')
  if not (unit and holds(load(unit), fence)) then bytes = bytes + tonumber(ARGV[at + 1]) end
end
redis.call('HSET', key, 'used', string.format('%.0f', bytes), 'res', string.format('%.0f', res), 'counted', NOW)
if bytes + res < tonumber(is.used or '0') + tonumber(is.res or '0') then nudge(store, 16) end
return {string.format('%.0f', bytes), string.format('%.0f', res)}
