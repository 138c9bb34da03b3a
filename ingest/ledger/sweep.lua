-- sweep(verb, job, cursor): one stretch of a job's units for "cancel" (what is due ends now, what is leased is told) or
-- "retry" (what failed, was quarantined or cancelled is due again). Returns {next cursor, queue, …}; the cursor "0" ends it.
local verb, job, cursor = ARGV[2], ARGV[3], ARGV[4]
if redis.call('EXISTS', jobkey(job)) == 0 then return {'0'} end
if verb == 'cancel' then
  local state = redis.call('HGET', jobkey(job), 'state')
  if state == 'done' or state == 'failed' or state == 'cancelled' then return {'0'} end
  redis.call('HSET', jobkey(job), 'cancelled', 1, 'sealed', 1)
end
local found = redis.call('HSCAN', jobkey(job, 'shard'), cursor, 'COUNT', 300)
local queues = {found[1]}
for at = 1, #found[2], 2 do
  local n = found[2][at]
  local unit = job .. '.' .. n
  local rec = cjson.decode(found[2][at + 1])
  if verb == 'cancel' and rec.s == 'due' then
    settle(unit, job, n, rec, 'cancelled')
  elseif verb == 'retry' and (rec.s == 'failed' or rec.s == 'quarantined' or rec.s == 'cancelled') then
    redis.call('HINCRBY', jobkey(job), 'open', 1)
    redis.call('HINCRBY', jobkey(job), rec.s == 'cancelled' and 'stopped' or 'failed', -1)
    redis.call('HINCRBY', jobkey(job), 'files_failed', -(rec.ff or 0))
    if isplan(n) then redis.call('HINCRBY', jobkey(job), 'plans', 1) end
    redis.call('HSET', jobkey(job), 'state', 'running', 'cancelled', 0)
    redis.call('HDEL', jobkey(job), 'finished')
    redis.call('ZREM', P .. 'expire', job)
    set_state(job, n, rec, 'due')
    rec.at, rec.dl, rec.ff, rec.er = 0, 0, 0, nil
    push_due(unit, job, n, rec)
    save(job, n, rec)
    event(job, 'again', n)
    queues[#queues + 1] = rec.q
  end
end
if verb == 'cancel' and found[1] == '0' then finish_if_over(job) end
return queues
