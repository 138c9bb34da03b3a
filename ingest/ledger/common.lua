-- Shared by every script: names of keys, records of units, and the few transitions that all others are made of.
-- A unit is "<job>.<n>" (a shard) or "<job>.p<n>" (a piece of planning). Its record is JSON in the hash job:<id>:shard:
--   s state   q queue   i source of its first file   p part of it   c files listed   o origin   f fence of the last lease
--   w worker  at attempts  dl worker deaths  nb due at (ms)  er last reason  fd files done  ff files failed  by bytes done
--   x, xw process and worker of a lease that ran out   bo 1: backs off from an origin   wk 1: what it waited for has landed
--   hw bytes that were here when an attempt began, the most so far   re 1: it was claimed before
--   pc 1: it belongs to the picture of its source, see picture() below   an how often its end was taken back
--   sp the store in which it has reserved space   sh the one in which it waits for space
-- Times are Redis's own, in milliseconds. Keys are built here, so this ledger lives in one Redis, not in a cluster.
local P = ARGV[1]
local CLOCK = redis.call('TIME')
local NOW = CLOCK[1] * 1000 + math.floor(CLOCK[2] / 1000)

local function jobkey(job, part)
  if part then return P .. 'job:' .. job .. ':' .. part end
  return P .. 'job:' .. job
end

local function split(unit)
  return string.match(unit, '^(.*)%.(p?%d+)$')
end

local function load(unit)
  local job, n = split(unit)
  if not job then return nil end
  local text = redis.call('HGET', jobkey(job, 'shard'), n)
  if not text then return nil end
  return cjson.decode(text), job, n
end

local function save(job, n, rec)
  redis.call('HSET', jobkey(job, 'shard'), n, cjson.encode(rec))
end

local function isplan(n)
  return string.sub(n, 1, 1) == 'p'
end

local function event(job, kind, n, state)
  redis.call('XADD', jobkey(job, 'events'), '*', 'k', kind, 'n', n or '', 's', state or '')
end

-- How many shards of a job are in each state; planning is not among them.
local function count(job, n, from, to)
  if isplan(n) then return end
  if from then redis.call('HINCRBY', jobkey(job), 'c:' .. from, -1) end
  if to then redis.call('HINCRBY', jobkey(job), 'c:' .. to, 1) end
end

local function set_state(job, n, rec, to)
  count(job, n, rec.s, to)
  rec.s = to
end

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

-- The space of a store is a hash: used, bytes as last counted and published since; r:UNIT what a unit may still write, res the sum of
-- all r; p:UNIT what it has published; add all that units ever added to used; dry, why nothing can be evicted, till when, and as of which holders.
local function space(store)
  return P .. 'space:' .. store
end

local function add_to(key, field, bytes)
  if bytes ~= 0 then redis.call('HINCRBY', key, field, string.format('%.0f', bytes)) end
end

-- What a unit leaves behind is a partial file of at most the size that it had reserved. How much it is, the next count of the disk says.
local function leave_space(unit, rec)
  if not rec.sp then return end
  local key = space(rec.sp)
  local had = tonumber(redis.call('HGET', key, 'r:' .. unit) or '0')
  add_to(key, 'res', -had)
  if redis.call('HEXISTS', key, 'used') == 1 then add_to(key, 'used', had) end
  add_to(key, 'add', had)
  redis.call('HDEL', key, 'r:' .. unit, 'p:' .. unit)
  rec.sp = nil
end

local function leave_short(unit, rec)
  if rec.sh then redis.call('ZREM', P .. 'short:' .. rec.sh, unit) end
  rec.sh = nil
end

local function drop_lease(unit, job, n, rec)
  leave_space(unit, rec)
  redis.call('ZREM', P .. 'leases', unit)
  if rec.w then redis.call('HDEL', P .. 'held:' .. rec.w, unit) end
  redis.call('HDEL', jobkey(job, 'live'), n)
end

local function holds(rec, fence)
  return rec and rec.s == 'leased' and rec.f == fence
end

local land, holders_changed

local function finish_if_over(job)
  local meta = redis.call('HMGET', jobkey(job), 'sealed', 'open', 'plans', 'state', 'stopped', 'failed', 'keep', 'reply', 'low')
  if meta[9] and tonumber(meta[2]) <= tonumber(meta[9]) then -- planners that were far enough ahead go on
    redis.call('HDEL', jobkey(job), 'low')
    land('', {job .. '/ahead'})
  end
  if meta[1] ~= '1' then return end
  if tonumber(meta[3]) == 0 and meta[4] == 'planning' then
    redis.call('HSET', jobkey(job), 'state', 'running')
    event(job, 'planned')
  end
  if tonumber(meta[2]) > 0 or meta[4] == 'done' or meta[4] == 'failed' or meta[4] == 'cancelled' then return end
  local state = 'done'
  if tonumber(meta[6] or '0') > 0 then state = 'failed' end
  if tonumber(meta[5] or '0') > 0 then state = 'cancelled' end
  redis.call('HSET', jobkey(job), 'state', state, 'finished', NOW)
  redis.call('ZADD', P .. 'expire', NOW + tonumber(meta[7]), job)
  if state == 'cancelled' then redis.call('ZREM', P .. 'holding', job) else redis.call('ZADD', P .. 'holding', NOW, job) end
  holders_changed()
  redis.call('ZREM', P .. 'unsealed', job)
  if meta[8] == '1' then redis.call('ZADD', P .. 'outbox', NOW, job) end
  event(job, 'end', '', state)
end

-- A picture is a source whose partitions are read at one moment, or whose cursor moves on when all of it is there: the planner makes
-- it, and "JOB.SOURCE" names it. Its hash:
--   s state: none (no moment is needed), wanted, opening, held, refused, over   k none, held (by a process) or file (it can be
--   recognised)   g generation   id the moment   n node, c connection, u source, w worker that holds it   er, ec why not, and the class
--   of that error   tr moments lost   most how many may be   rf refusals in a row   pu unit that plans it   op units that are not over
--   bad units that are over and not done   plan packed partitions   ck, cf, cv cursor: its key, the value to begin after and the last
local function picture(job, i)
  return P .. 'picture:' .. job .. '.' .. i
end

-- Something of this node's concern happened: its keeper need not wait for its next round.
local function poke(node)
  local list = P .. 'wishes:' .. node
  redis.call('RPUSH', list, 1)
  redis.call('LTRIM', list, -8, -1)
  redis.call('PEXPIRE', list, 60000)
end

-- Whoever holds its moment may let it go.
local function let_go(job, i)
  local member = job .. '.' .. i
  local is = redis.call('HMGET', picture(job, i), 'w', 'n')
  redis.call('ZREM', P .. 'pictures', member)
  if not is[1] then return end
  redis.call('SREM', P .. 'holds:' .. is[1], member)
  redis.call('HDEL', picture(job, i), 'w')
  if is[2] ~= '' then poke(is[2]) end
end

-- One unit of a picture less to wait for. After the last one the moment is let go; and if all are done, the cursor moves on, unless
-- another job has moved it since: then what lies between is read again rather than left out.
local function leave_picture(job, i, state)
  local key = picture(job, i)
  if state ~= 'done' then redis.call('HINCRBY', key, 'bad', 1) end
  if redis.call('HINCRBY', key, 'op', -1) > 0 then return end
  let_go(job, i)
  local is = redis.call('HMGET', key, 'k', 'bad', 'ck', 'cf', 'cv')
  if is[1] ~= 'none' then redis.call('HSET', key, 's', 'over') end
  if tonumber(is[2]) > 0 or not is[3] then return end
  if is[4] == '*' or (redis.call('HGET', P .. 'cursors', is[3]) or '') == is[4] then
    redis.call('HSET', P .. 'cursors', is[3], is[5])
  end
  redis.call('HDEL', key, 'ck') -- once
end

-- The one way into a terminal state.
local function settle(unit, job, n, rec, state)
  drop_lease(unit, job, n, rec)
  leave_short(unit, rec)
  redis.call('ZREM', P .. 'due:' .. rec.q, unit)
  redis.call('ZREM', P .. 'delayed', unit)
  set_state(job, n, rec, state)
  save(job, n, rec)
  -- Nobody asks again what was in it; only a picture may have to be taken anew.
  if state == 'done' and not rec.pc and (rec.ff or 0) == 0 then redis.call('HDEL', jobkey(job, 'spec'), n) end
  redis.call('HINCRBY', jobkey(job), 'open', -1)
  if isplan(n) then redis.call('HINCRBY', jobkey(job), 'plans', -1) end
  if state == 'cancelled' then
    redis.call('HINCRBY', jobkey(job), 'stopped', 1)
  elseif state ~= 'done' then
    redis.call('HINCRBY', jobkey(job), 'failed', 1)
  end
  if not isplan(n) then redis.call('ZADD', P .. 'outbox', NOW, unit) end
  if rec.pc then leave_picture(job, rec.i, state) end
  event(job, 'shard', n, state)
  finish_if_over(job)
end

local function cancelled(job)
  return redis.call('HGET', jobkey(job), 'cancelled') == '1'
end

-- The opposite of settle, as far as the job's numbers go: a unit that was over is to be done again.
local function reopen(unit, job, n, rec, why)
  redis.call('HINCRBY', jobkey(job), 'open', 1)
  if rec.s == 'cancelled' then
    redis.call('HINCRBY', jobkey(job), 'stopped', -1)
  elseif rec.s ~= 'done' then
    redis.call('HINCRBY', jobkey(job), 'failed', -1)
  end
  if isplan(n) then redis.call('HINCRBY', jobkey(job), 'plans', 1) end
  if rec.pc then
    redis.call('HINCRBY', picture(job, rec.i), 'op', 1)
    if rec.s ~= 'done' then redis.call('HINCRBY', picture(job, rec.i), 'bad', -1) end
  end
  redis.call('ZREM', P .. 'outbox', unit)
  event(job, 'again', n, why)
end

-- Back among the due, at once or after delay_ms; a job that was cancelled meanwhile ends it here.
local function give_back(unit, job, n, rec, delay_ms)
  drop_lease(unit, job, n, rec)
  if cancelled(job) then return settle(unit, job, n, rec, 'cancelled') end
  set_state(job, n, rec, 'due')
  rec.w = nil
  if delay_ms > 0 then
    rec.nb = NOW + delay_ms
    redis.call('ZADD', P .. 'delayed', rec.nb, unit)
  else
    push_back(unit, rec)
  end
  save(job, n, rec)
end

-- A lease that ran out while nobody could renew it (a paused Redis, a stopped machine) is its holder's again as long as nobody
-- else has claimed the unit: the token is still the last one.
local function regain(unit, job, n, rec, fence)
  if not (rec and rec.s == 'due' and rec.f == fence and rec.x) then return end
  redis.call('ZREM', P .. 'due:' .. rec.q, unit)
  set_state(job, n, rec, 'leased')
  rec.w, rec.dl, rec.nb = rec.xw, rec.dl - 1, 0
  redis.call('HSET', P .. 'held:' .. rec.w, unit, rec.x)
  redis.call('ZADD', P .. 'leases', NOW + 12000, unit)
  rec.x, rec.xw = nil, nil
  save(job, n, rec)
end

-- Its worker died under it. After `limit` deaths it is quarantined: it may be what kills them.
local function release_dead(unit, job, n, rec, limit, expired)
  if expired and rec.w then
    rec.x, rec.xw = redis.call('HGET', P .. 'held:' .. rec.w, unit) or nil, rec.w
  end
  rec.dl = (rec.dl or 0) + 1
  rec.er = 'its worker died'
  if rec.dl >= limit and not cancelled(job) then
    rec.er = 'killed its worker ' .. rec.dl .. ' times'
    return settle(unit, job, n, rec, 'quarantined')
  end
  give_back(unit, job, n, rec, 0)
end

-- One that waited for this unit's flight may look. Not one that backs off from an origin: that has its time from elsewhere.
local function wake(waiter)
  local rec, job, n = load(waiter)
  if not rec then return end
  if rec.s == 'leased' then
    rec.wk = 1 -- on its way to bed: it need not lie down
  elseif rec.s == 'due' and not rec.bo and redis.call('ZREM', P .. 'delayed', waiter) == 1 then
    push_back(waiter, rec)
  else
    return
  end
  save(job, n, rec)
end

-- Some of those that wait for space in a store may look: the first of their jobs, and some others, as the first may want more than there
-- is. They wait until they have it.
local function nudge(store, most)
  for _, at in ipairs({0, NOW % math.max(1, redis.call('ZCARD', P .. 'short:' .. store))}) do
    for _, unit in ipairs(redis.call('ZRANGE', P .. 'short:' .. store, at, at + most - 1)) do
      if load(unit) then wake(unit) else redis.call('ZREM', P .. 'short:' .. store, unit) end
    end
  end
  if redis.call('EXISTS', P .. 'short:' .. store) == 0 then redis.call('SREM', P .. 'shorts', store) end
end

-- Which jobs hold which files is another question now: whoever evicts asks it anew, and some of those that wait may look.
function holders_changed()
  redis.call('INCR', P .. 'holders')
  for _, store in ipairs(redis.call('SMEMBERS', P .. 'shorts')) do nudge(store, 16) end
end

-- What this unit was fetching is no longer in flight. Of the keys that it names, those in another's flight are left alone.
function land(unit, flights)
  for _, key in ipairs(flights) do
    local flight = P .. 'flight:' .. key
    local holder = redis.call('GET', flight)
    if not holder or string.match(holder, '^(%S+) ') == unit then
      redis.call('DEL', flight)
      for _, waiter in ipairs(redis.call('SMEMBERS', P .. 'waiting:' .. key)) do
        if waiter ~= unit then wake(waiter) end
      end
      redis.call('DEL', P .. 'waiting:' .. key)
    end
  end
end

-- All of a picture is read again, from another moment: what was read at the old one is dropped, whoever still reads at it has
-- nothing to say any more, and nobody begins before the new moment is there. A transition of its own, whole or not at all.
local function anew(job, i, why, node)
  local key = picture(job, i)
  let_go(job, i)
  if cancelled(job) then return redis.call('HSET', key, 's', 'over') end
  local is = redis.call('HMGET', key, 's', 'k', 'tr', 'most')
  local lost = tonumber(is[3])
  if is[1] == 'held' then lost = redis.call('HINCRBY', key, 'tr', 1) end
  local spent = lost >= tonumber(is[4])
  if spent then why = lost .. ' snapshots of it were lost, so it was given up; the last: ' .. why end
  redis.call('HINCRBY', key, 'g', 1)
  redis.call('HDEL', key, 'id')
  redis.call('HSET', key, 's', spent and 'refused' or 'wanted', 'er', why, 'ec', 'SnapshotLost', 'rf', 0, 'n', node)
  if is[2] == 'held' and not spent then
    redis.call('ZADD', P .. 'pictures', NOW, job .. '.' .. i)
    if node ~= '' then poke(node) end
  end
  for _, n in ipairs(redis.call('LRANGE', P .. 'pictured:' .. job .. '.' .. i, 0, -1)) do
    local unit = job .. '.' .. n
    local rec = load(unit)
    if rec then
      if rec.s == 'leased' then
        drop_lease(unit, job, n, rec)
      elseif rec.s == 'due' then
        redis.call('ZREM', P .. 'due:' .. rec.q, unit)
        redis.call('ZREM', P .. 'delayed', unit)
      else
        reopen(unit, job, n, rec, 'anew')
        rec.an = (rec.an or 0) + 1
      end
      redis.call('HINCRBY', jobkey(job), 'files_done', 0 - (rec.fd or 0)) -- a mere minus makes "-0", which is no integer
      redis.call('HINCRBY', jobkey(job), 'files_failed', 0 - (rec.ff or 0))
      redis.call('HINCRBY', jobkey(job), 'bytes', string.format('%.0f', 0 - (rec.by or 0)))
      local had = redis.call('HGET', jobkey(job, 'done'), n)
      if had then -- kept aside for whoever reads it again: of what into= made, nothing is to stay
        redis.call('HSET', jobkey(job, 'done'), 'old:' .. n, had)
        redis.call('HDEL', jobkey(job, 'done'), n)
        event(job, 'anew', n)
      end
      set_state(job, n, rec, 'due')
      rec.at, rec.fd, rec.ff, rec.by, rec.er = 0, 0, 0, 0, why
      rec.w, rec.f, rec.x, rec.xw, rec.bo, rec.wk = nil, nil, nil, nil, nil, nil
      if is[2] == 'held' and not spent then
        rec.nb = NOW + 30000 -- it is woken when the moment is there
        redis.call('ZADD', P .. 'delayed', rec.nb, unit)
      else
        push_back(unit, rec)
      end
      save(job, n, rec)
    end
  end
  if spent then wake(job .. '.' .. redis.call('HGET', key, 'pu')) end -- nothing comes any more: it says so
end

-- Its planner and its shards.
local function units_of(job, i)
  local units = redis.call('LRANGE', P .. 'pictured:' .. job .. '.' .. i, 0, -1)
  units[#units + 1] = redis.call('HGET', picture(job, i), 'pu')
  return units
end

-- What waits for the moment of a picture may look now. Returns the queues to ring for.
local function wake_picture(job, i)
  local queues = {}
  for _, n in ipairs(units_of(job, i)) do
    wake(job .. '.' .. n)
    local rec = load(job .. '.' .. n)
    if rec and rec.s == 'due' then queues[#queues + 1] = rec.q end
  end
  return queues
end
