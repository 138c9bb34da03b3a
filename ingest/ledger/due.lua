-- Start-time fair queueing: each job has its own clock, which starts at the queue's and advances by one a shard. A job of ten
-- shards submitted behind one of a hundred thousand is therefore served with it, not after it.
local function push_due(unit, job, n, rec)
  local clock = tonumber(redis.call('GET', P .. 'vtime:' .. rec.q) or '0')
  local pass = tonumber(redis.call('HGET', jobkey(job), 'pass:' .. rec.q) or '0')
  local score = math.max(clock, pass) + 1
  redis.call('HSET', jobkey(job), 'pass:' .. rec.q, score)
  redis.call('ZADD', P .. 'due:' .. rec.q, score, unit)
  redis.call('SADD', P .. 'queues', rec.q)
  rec.nb = 0
end

-- A unit that comes back is not new work: it is among the next, wherever its job stands. One step after the clock, not at it:
-- one that comes back again and again would else always be the best, and nobody else's turn would come.
local function push_back(unit, rec)
  local clock = tonumber(redis.call('GET', P .. 'vtime:' .. rec.q) or '0')
  redis.call('ZADD', P .. 'due:' .. rec.q, clock + 1, unit)
  redis.call('SADD', P .. 'queues', rec.q)
  rec.nb = 0
end

local function mature(limit)
  local ready = redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', NOW, 'LIMIT', 0, limit)
  for _, unit in ipairs(ready) do
    redis.call('ZREM', P .. 'delayed', unit)
    local rec, job, n = load(unit)
    if rec and rec.s == 'due' then
      push_back(unit, rec)
      save(job, n, rec)
    end
  end
end
