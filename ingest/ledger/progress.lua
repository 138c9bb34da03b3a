-- progress(unit, fence, bytes, lease_ms): "ok", "cancelled" (stop, unless somebody waits for what you fetch) or "lost".
local unit, fence, bytes, lease = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local rec, job, n = load(unit)
regain(unit, job, n, rec, fence)
if not holds(rec, fence) then return 'lost' end
redis.call('ZADD', P .. 'leases', NOW + lease, unit)
redis.call('HSET', jobkey(job, 'live'), n, bytes)
if cancelled(job) then return 'cancelled' end
return 'ok'
