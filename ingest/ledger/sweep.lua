-- sweep(verb, job, cursor): one stretch of a job's units for "cancel" (what is due ends now, what is leased is told) or
-- "retry" (what failed, was quarantined or cancelled is due again). Returns {next cursor, queue, …}; the cursor "0" ends it.
local verb, job, cursor = ARGV[2], ARGV[3], ARGV[4]
if redis.call('EXISTS', jobkey(job)) == 0 then return {'0'} end
if verb == 'cancel' then
  local state = redis.call('HGET', jobkey(job), 'state')
  if state == 'done' or state == 'failed' or state == 'cancelled' then return {'0'} end
  if redis.call('HGET', jobkey(job), 'sealed') ~= '1' then
    -- Also if all that came so far is done, this job is not; and no retry will make it whole.
    redis.call('HSET', jobkey(job), 'error', 'it was cancelled before its submission was complete; submit it again')
    redis.call('HINCRBY', jobkey(job), 'stopped', 1)
  end
  redis.call('HSET', jobkey(job), 'cancelled', 1, 'sealed', 1)
end
-- What is leased was told to stop, and may go on; a job that was cancelled before all of it was submitted is never whole.
if verb == 'retry' and cancelled(job) and redis.call('HEXISTS', jobkey(job), 'error') == 0 then
  redis.call('HSET', jobkey(job), 'cancelled', 0)
end
local found = redis.call('HSCAN', jobkey(job, 'shard'), cursor, 'COUNT', 300)
local queues = {found[1]}
local again = false
for at = 1, #found[2], 2 do
  local n = found[2][at]
  local unit = job .. '.' .. n
  local rec = load(unit) or {} -- one that is damaged keeps no other from its end
  if verb == 'cancel' and rec.s == 'due' then
    settle(unit, job, n, rec, 'cancelled')
  elseif verb == 'retry' and (rec.s == 'failed' or rec.s == 'quarantined' or rec.s == 'cancelled' or (rec.s == 'done' and (rec.ff or 0) > 0)) then
    reopen(unit, job, n, rec, '')
    redis.call('HINCRBY', jobkey(job), 'files_failed', 0 - (rec.ff or 0)) -- a mere minus makes "-0", which is no integer
    if rec.pc then
      -- Its moment may be past, or may have been refused: it gets as many new ones as at first.
      redis.call('HSET', picture(job, rec.i), 'tr', 0)
      if redis.call('HGET', picture(job, rec.i), 's') == 'refused' then redis.call('HSET', picture(job, rec.i), 's', 'over') end
    end
    set_state(job, n, rec, 'due')
    begin_anew(rec)
    rec.ff, rec.er = 0, nil
    push_due(unit, job, n, rec)
    save(job, n, rec)
    queues[#queues + 1] = rec.q
    again = true
  end
end
if again then
  local meta = redis.call('HMGET', jobkey(job), 'sealed', 'plans')
  local state = (meta[1] ~= '1' or tonumber(meta[2]) > 0) and 'planning' or 'running'
  -- Deadlines count from here.
  redis.call('HSET', jobkey(job), 'state', state, 'cancelled', 0, 'again', NOW)
  redis.call('HDEL', jobkey(job), 'finished')
  redis.call('ZREM', P .. 'expire', job)
  redis.call('ZADD', P .. 'holding', '+inf', job)
  redis.call('INCR', P .. 'comers')
  redis.call('ZREM', P .. 'outbox', job)
end
if verb == 'cancel' and found[1] == '0' then finish_if_over(job) end
return queues
