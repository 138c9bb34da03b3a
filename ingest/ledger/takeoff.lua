-- takeoff(unit, fence, key, …): for each source key 1 if this unit may fetch it now, 0 if another unit is fetching it (then this
-- one is noted as waiting). A flight is as good as its unit's lease: nothing to renew, nothing left behind by the dead.
local unit, fence = ARGV[2], ARGV[3]
local rec = load(unit)
if not holds(rec, fence) then return 'lost' end
local answer = {}
for at = 4, #ARGV do
  local flight = P .. 'flight:' .. ARGV[at]
  local holder = redis.call('GET', flight)
  local free = true
  if holder then
    local other, its = string.match(holder, '^(%S+) (%S+)$')
    free = other == nil or other == unit or not holds(load(other), its)
  end
  if free then
    redis.call('SET', flight, unit .. ' ' .. fence, 'EX', 86400)
    answer[#answer + 1] = 1
  else
    redis.call('SADD', P .. 'waiting:' .. ARGV[at], unit)
    redis.call('EXPIRE', P .. 'waiting:' .. ARGV[at], 86400)
    answer[#answer + 1] = 0
  end
end
return answer
