-- seal(job, error): the submission is complete (or was given up, with an error). Returns the job's state.
local job, why = ARGV[2], ARGV[3]
if redis.call('EXISTS', jobkey(job)) == 0 then return 'unknown' end
if redis.call('HGET', jobkey(job), 'sealed') == '1' then return redis.call('HGET', jobkey(job), 'state') end
if why ~= '' then
  redis.call('HSET', jobkey(job), 'error', why)
  redis.call('HINCRBY', jobkey(job), 'failed', 1)
end
redis.call('HSET', jobkey(job), 'sealed', 1)
redis.call('ZREM', P .. 'unsealed', job)
event(job, 'sealed')
finish_if_over(job)
return redis.call('HGET', jobkey(job), 'state')
