-- forget(job): a finished job leaves the ledger; one that was brought back to life meanwhile stays. Its files and their manifests
-- stay in the stores. Returns whether it went.
local job = ARGV[2]
if not redis.call('ZSCORE', P .. 'expire', job) then return 0 end
local key = redis.call('HGET', jobkey(job), 'key')
if key and key ~= '' and redis.call('GET', P .. 'key:' .. key) == job then redis.call('DEL', P .. 'key:' .. key) end
for _, i in ipairs(redis.call('SMEMBERS', jobkey(job, 'pictures'))) do
  let_go(job, i)
  redis.call('UNLINK', picture(job, i), P .. 'pictured:' .. job .. '.' .. i)
end
for _, part in ipairs({'spec', 'shard', 'done', 'live', 'events', 'pictures'}) do redis.call('UNLINK', jobkey(job, part)) end
redis.call('DEL', jobkey(job))
redis.call('ZREM', P .. 'jobs', job)
redis.call('ZREM', P .. 'expire', job)
return 1
