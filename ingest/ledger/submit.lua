-- Shared: how a job comes to be. `begin` is all three at once; a job of many units, or with a key, takes them one after the other.

-- A new job, or the one that the same key already made, unless that can never be whole, since its submission was given up or cancelled.
-- Returns {id, open, new, epoch, created}: open is 1 while its submission is not complete, so that a call that is repeated because its
-- answer was lost says the same again.
local function create_job(id, key, keep, reply, options)
  local function answer(job, new)
    local meta = redis.call('HMGET', jobkey(job), 'sealed', 'epoch', 'created')
    return {job, meta[1] == '1' and 0 or 1, new and 1 or 0, meta[2], meta[3]}
  end
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
end

-- Shards (kind "") or pieces of planning (kind "p") from ARGV[from] on, spec and facts of each in turn; facts is JSON {i, p, c, o, q}.
-- The first is the submitter's `start`th: what of a batch is already there is not added again, so a lost reply may be retried, and a
-- submission taken up again. Planners add shards meanwhile: a shard's number is the next one of all, not the submitter's. `pictured`:
-- the picture that they belong to, if any.
local function add_units(job, kind, start, from, pictured)
  local counter = kind == 'p' and 'plan_next' or 'next'
  local sent = kind == 'p' and 'plan_next' or 'sent'
  local there = start and tonumber(redis.call('HGET', jobkey(job), sent) or '0') or 0
  local number = tonumber(redis.call('HGET', jobkey(job), counter))
  local files, added = 0, 0
  for at = from, #ARGV, 2 do
    if not start or start + (at - from) / 2 >= there then
      local n = kind .. string.format('%d', number)
      local rec = cjson.decode(ARGV[at + 1])
      rec.s, rec.at, rec.dl = 'due', 0, 0
      if pictured then
        rec.pc = 1
        redis.call('RPUSH', P .. 'pictured:' .. job .. '.' .. pictured, n)
      end
      redis.call('HSET', jobkey(job, 'spec'), n, ARGV[at])
      push_due(job .. '.' .. n, job, n, rec)
      save(job, n, rec)
      count(job, n, nil, 'due')
      files = files + rec.c
      added = added + 1
      number = number + 1
    end
  end
  redis.call('HSET', jobkey(job), counter, number)
  if start and kind ~= 'p' then redis.call('HINCRBY', jobkey(job), sent, added) end
  redis.call('HINCRBY', jobkey(job), 'open', added)
  if pictured then redis.call('HINCRBY', picture(job, pictured), 'op', added) end
  if kind == 'p' then redis.call('HINCRBY', jobkey(job), 'plans', added) else redis.call('HINCRBY', jobkey(job), 'files', files) end
  event(job, 'add')
end

-- Units of a submitter, all sources before the `upto`th among them. Returns "ok", "cancelled", "unknown", or "given up": it was not heard
-- for so long that its job ended without it.
local function submit_units(job, kind, start, upto, from)
  if redis.call('EXISTS', jobkey(job)) == 0 then return 'unknown' end
  if cancelled(job) then return 'cancelled' end
  if redis.call('HEXISTS', jobkey(job), 'error') == 1 then -- no retry makes it whole
    return redis.call('HEXISTS', jobkey(job), 'given_up') == 1 and 'given up' or 'cancelled'
  end
  add_units(job, kind, start, from)
  redis.call('HSET', jobkey(job), 'upto', upto)
  redis.call('ZADD', P .. 'unsealed', 'XX', NOW, job)
  return 'ok'
end

-- The submission is complete (or was given up, with an error). Returns the job's state, "unknown", or "given up" to a submitter that comes
-- too late.
local function seal_job(job, why)
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
end
