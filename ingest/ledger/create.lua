-- create(id, key, keep_ms, reply, options): a new job, or the one that the same key already made. Returns {id, made}.
local id, key, keep, reply, options = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if key ~= '' then
  local old = redis.call('GET', P .. 'key:' .. key)
  if old and redis.call('EXISTS', jobkey(old)) == 1 then return {old, 0} end
  redis.call('SET', P .. 'key:' .. key, id)
end
if redis.call('EXISTS', jobkey(id)) == 1 then return {id, 0} end
redis.call('HSET', jobkey(id), 'v', 1, 'state', 'planning', 'created', NOW, 'key', key, 'keep', keep, 'reply', reply,
  'options', options, 'next', 0, 'plan_next', 0, 'open', 0, 'plans', 0, 'sealed', 0, 'upto', 0,
  'files', 0, 'files_done', 0, 'files_failed', 0, 'bytes', 0, 'retries', 0, 'failed', 0)
redis.call('ZADD', P .. 'jobs', NOW, id)
redis.call('ZADD', P .. 'unsealed', NOW, id)
return {id, 1}
