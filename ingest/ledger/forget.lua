-- forget(job): a finished job leaves the ledger. Its files and their manifests stay in the stores.
local job = ARGV[2]
local key = redis.call('HGET', jobkey(job), 'key')
if key and key ~= '' and redis.call('GET', P .. 'key:' .. key) == job then redis.call('DEL', P .. 'key:' .. key) end
for _, part in ipairs({'spec', 'shard', 'done', 'live', 'events'}) do redis.call('UNLINK', jobkey(job, part)) end
redis.call('DEL', jobkey(job))
redis.call('ZREM', P .. 'jobs', job)
redis.call('ZREM', P .. 'expire', job)
return 1
