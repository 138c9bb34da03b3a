-- seal(job, error): the submission is complete (or was given up, with an error). Returns the job's state, "unknown", or "given up" to a
-- submitter that comes too late.
local job, why = ARGV[2], ARGV[3]
if redis.call('EXISTS', jobkey(job)) == 0 then return 'unknown' end
if redis.call('HGET', jobkey(job), 'sealed') == '1' then
  local late = why == '' and not cancelled(job) and redis.call('HEXISTS', jobkey(job), 'given_up') == 1
  return late and 'given up' or redis.call('HGET', jobkey(job), 'state')
end
if why ~= '' then
  redis.call('HSET', jobkey(job), 'error', why, 'given_up', 1)
  redis.call('HINCRBY', jobkey(job), 'failed', 1)
end
redis.call('HSET', jobkey(job), 'sealed', 1)
redis.call('ZREM', P .. 'unsealed', job)
event(job, 'sealed')
finish_if_over(job)
return redis.call('HGET', jobkey(job), 'state')
