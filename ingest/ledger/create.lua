-- create(id, key, keep_ms, reply, options): a new job, or the one that the same key already made, unless that can never be whole, since its
-- submission was given up or cancelled. Returns {id, open, new}: open is 1 while its submission is not complete, so that a call that is
-- repeated because its answer was lost says the same again.
local function answer(job, new)
  return {job, redis.call('HGET', jobkey(job), 'sealed') == '1' and 0 or 1, new and 1 or 0}
end

local id, key, keep, reply, options = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if key ~= '' then
  local old = redis.call('GET', P .. 'key:' .. key)
  local is_there = old and redis.call('HEXISTS', jobkey(old), 'options') == 1
  if is_there and redis.call('HEXISTS', jobkey(old), 'error') == 0 then return answer(old) end
  redis.call('SET', P .. 'key:' .. key, id)
end
if redis.call('EXISTS', jobkey(id)) == 1 then return answer(id) end
-- Which ledger this is: another one, once it was wiped. And which making of this job: a job that was lost is put back under its id.
local epoch = redis.call('GET', P .. 'epoch')
if not epoch then
  epoch = CLOCK[1] .. '.' .. CLOCK[2] .. '-' .. id
  redis.call('SET', P .. 'epoch', epoch)
end
redis.call('HSET', jobkey(id), 'epoch', epoch, 'made', CLOCK[1] .. '.' .. CLOCK[2], 'v', 1, 'state', 'planning', 'created', NOW,
  'key', key, 'keep', keep, 'reply', reply, 'options', options, 'next', 0, 'sent', 0, 'plan_next', 0, 'open', 0, 'plans', 0, 'sealed', 0, 'upto', 0,
  'files', 0, 'files_done', 0, 'files_failed', 0, 'bytes', 0, 'retries', 0, 'failed', 0)
redis.call('ZADD', P .. 'jobs', NOW, id)
redis.call('ZADD', P .. 'unsealed', NOW, id)
redis.call('ZADD', P .. 'holding', '+inf', id)
return answer(id, true)
