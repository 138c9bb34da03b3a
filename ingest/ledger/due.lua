-- The order of work: a sorted set for each queue, the least score first. What a reader needs has a score below 0: the nearest in any
-- window first, then whoever asked first. What nobody needs follows, by fair queueing between jobs.
-- A record says that it is needed: nd how far ahead in that window, nq its place among those as near, nr the reader, nt until when.
-- Nothing is kept of a reader that is gone: what is not renewed is over at nt.
local FAR = 4095 -- distances and places are one double together, and exact

local function needed(rec)
  return (rec.nt or 0) > NOW
end

local function need_score(rec)
  return rec.nd * 1099511627776 + rec.nq - 4503599627370496 -- 2^40 places at each distance, all of them below 0
end

local function line_up(unit, rec, score)
  if needed(rec) then score = need_score(rec) else rec.nd, rec.nq, rec.nr, rec.nt = nil, nil, nil, nil end
  redis.call('ZADD', P .. 'due:' .. rec.q, string.format('%.0f', score), unit)
  redis.call('SADD', P .. 'queues', rec.q)
  rec.nb = 0
end

-- Start-time fair queueing: each job has its own clock, which starts at the queue's and advances by one a shard. A job of ten
-- shards submitted behind one of a hundred thousand is therefore served with it, not after it.
local function push_due(unit, job, n, rec)
  local clock = tonumber(redis.call('GET', P .. 'vtime:' .. rec.q) or '0')
  local pass = tonumber(redis.call('HGET', jobkey(job), 'pass:' .. rec.q) or '0')
  local score = math.max(clock, pass) + 1
  redis.call('HSET', jobkey(job), 'pass:' .. rec.q, score)
  line_up(unit, rec, score)
end

-- A unit that comes back is not new work: it is among the next, wherever its job stands. One step after the clock, not at it:
-- one that comes back again and again would else always be the best, and nobody else's turn would come.
local function push_back(unit, rec)
  line_up(unit, rec, tonumber(redis.call('GET', P .. 'vtime:' .. rec.q) or '0') + 1)
end

-- What was delayed until now is due. Returns how many were.
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
  return #ready
end
