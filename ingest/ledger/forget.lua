-- forget(job): a finished job leaves the ledger; one that was brought back to life meanwhile stays. Its files and their manifests
-- stay in the stores. Returns whether it went.
local job = ARGV[2]
if not redis.call('ZSCORE', P .. 'expire', job) then return 0 end
if tonumber(redis.call('ZSCORE', P .. 'reading', job) or '0') > NOW or tonumber(redis.call('HGET', jobkey(job), 'gone') or '0') > 0 then
  redis.call('ZADD', P .. 'expire', NOW + 60000, job) -- somebody still reads it, or something of it is fetched again
  return 0
end
local key = redis.call('HGET', jobkey(job), 'key')
-- So that a handle does not take for a loss what was meant. After its time nobody would put it back anyway.
local until_ms = tonumber(redis.call('HGET', jobkey(job), 'created') or '0') + tonumber(redis.call('HGET', jobkey(job), 'keep') or '0')
redis.call('ZREMRANGEBYSCORE', P .. 'gone', '-inf', NOW)
if until_ms > NOW then redis.call('ZADD', P .. 'gone', until_ms, job) end
if key and key ~= '' and redis.call('GET', P .. 'key:' .. key) == job then redis.call('DEL', P .. 'key:' .. key) end
for _, i in ipairs(redis.call('SMEMBERS', jobkey(job, 'pictures'))) do
  let_go(job, i)
  redis.call('UNLINK', picture(job, i), P .. 'pictured:' .. job .. '.' .. i)
end
for _, part in ipairs({'spec', 'shard', 'done', 'live', 'events', 'pictures', 'parted'}) do redis.call('UNLINK', jobkey(job, part)) end
redis.call('DEL', jobkey(job))
redis.call('ZREM', P .. 'jobs', job)
redis.call('ZREM', P .. 'expire', job)
redis.call('ZREM', P .. 'holding', job)
redis.call('ZREM', P .. 'reading', job)
redis.call('DEL', P .. 'readers:' .. job)
return 1
