-- beat(worker, node, store, info, lease_ms, deaths_allowed, alive, (unit, fence) × alive, (unit, fence) of the dead …): a worker's heartbeat.
-- Renews what its living processes hold and takes back what its dead ones held. Returns the units to be stopped.
local worker, node, store, info = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local lease, limit = tonumber(ARGV[6]), tonumber(ARGV[7])
redis.call('HSET', P .. 'stores', node, store)
redis.call('ZADD', P .. 'workers', NOW, worker)
redis.call('SET', P .. 'worker:' .. worker, info, 'PX', 86400000)
local alive = tonumber(ARGV[8])
local stop = {}
for at = 9, #ARGV, 2 do
  local unit, fence = ARGV[at], ARGV[at + 1]
  local rec, job, n = load(unit)
  if not holds(rec, fence) then
    -- Another process of this worker may have it by now, under another token.
    local its = string.match(redis.call('HGET', P .. 'held:' .. worker, unit) or '', '^%S+ (.+)$')
    if its == fence then redis.call('HDEL', P .. 'held:' .. worker, unit) end
    if (at - 9) / 2 < alive then stop[#stop + 1] = unit end
  elseif (at - 9) / 2 < alive then
    redis.call('ZADD', P .. 'leases', NOW + lease, unit)
    if cancelled(job) then stop[#stop + 1] = unit end
  else
    release_dead(unit, job, n, rec, limit)
  end
end
return stop
