-- progress(unit, fence, bytes, lease_ms, held): "ok", "cancelled" (stop, unless somebody waits for what you fetch) or "lost".
local unit, fence, bytes, lease = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local rec, job, n = load(unit)
regain(unit, job, n, rec, fence)
if not holds(rec, fence) then return 'lost' end
redis.call('ZADD', P .. 'leases', NOW + lease, unit)
redis.call('HSET', jobkey(job, 'live'), n, bytes)
-- What was here when it began is more, by at least a MiB, than at any attempt before: deaths do not keep it from its end.
local held = tonumber(ARGV[6])
if held >= (rec.hw or 0) + 1048576 then
  rec.hw, rec.dl = held, 0
  save(job, n, rec)
end
if cancelled(job) then return 'cancelled' end
return 'ok'
