-- aloft(store, key, …): for each source key 1 if a unit has it in flight to that store.
local answer = {}
for at = 3, #ARGV do
  local flight = redis.call('GET', P .. 'flight:' .. ARGV[2] .. '/' .. ARGV[at])
  local unit, fence = string.match(flight or '', '^(%S+) (%S+)$')
  answer[#answer + 1] = unit and holds(load(unit), fence) and 1 or 0
end
return answer
