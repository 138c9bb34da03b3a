-- What becomes of a unit: the transitions that all others are made of. Some of them lead to the source that it belongs to, see pictures.lua.
local land, holders_changed, picture, leave_picture

local function drop_lease(unit, job, n, rec)
  leave_space(unit, rec)
  redis.call('ZREM', P .. 'leases', unit)
  if rec.w then redis.call('HDEL', P .. 'held:' .. rec.w, unit) end
  redis.call('HDEL', jobkey(job, 'live'), n)
end

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

-- The one way into a terminal state.
local function settle(unit, job, n, rec, state)
  drop_lease(unit, job, n, rec)
  leave_short(unit, rec)
  redis.call('ZREM', P .. 'due:' .. rec.q, unit)
  redis.call('ZREM', P .. 'delayed', unit)
  set_state(job, n, rec, state)
  local again = rec.gn
  rec.gn, rec.ga, rec.nd, rec.nq, rec.nr, rec.nt = nil, nil, nil, nil, nil, nil
  save(job, n, rec)
  if again then redis.call('HINCRBY', jobkey(job), 'gone', -1) else redis.call('HINCRBY', jobkey(job), 'open', -1) end
  if isplan(n) then redis.call('HINCRBY', jobkey(job), 'plans', -1) end
  if state == 'cancelled' then
    redis.call('HINCRBY', jobkey(job), 'stopped', 1)
  elseif state ~= 'done' then
    redis.call('HINCRBY', jobkey(job), 'failed', 1)
  end
  if not isplan(n) then redis.call('ZADD', P .. 'outbox', NOW, unit) end
  event(job, again and 'there' or 'shard', n, state)
  if not again then
    if rec.pc then leave_picture(job, rec.i, state) end
    return finish_if_over(job)
  end
  if state == 'done' then return end
  if rec.pc then redis.call('HINCRBY', picture(job, rec.i), 'bad', 1) end
  if redis.call('HGET', jobkey(job), 'state') == 'done' then -- all of it had arrived, and not all of it can be had any more
    redis.call('HSET', jobkey(job), 'state', 'failed')
    event(job, 'end', '', 'failed')
  end
end

-- Who held it before has nothing to say any more, and what counted against it does not.
local function begin_anew(rec)
  rec.at, rec.dl = 0, 0
  rec.w, rec.f, rec.x, rec.bo, rec.wk, rec.hw = nil, nil, nil, nil, nil, nil
end

-- Among the due, at once or after delay_ms.
local function lie_down(unit, job, n, rec, delay_ms)
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

-- A shard that is done, and of which files are gone from a reader's store, is fetched again, there. Its job stays what it is: all of it
-- has arrived once. So who waits for the job or takes its files as they come hears nothing of it; `gone` and `there` are for readers.
local function fetch_again(unit, job, n, rec, queue)
  redis.call('HINCRBY', jobkey(job), 'gone', 1)
  redis.call('ZREM', P .. 'outbox', unit)
  begin_anew(rec)
  rec.gn, rec.ga, rec.an, rec.er = 1, NOW, (rec.an or 0) + 1, 'files of it are gone from the store'
  if queue ~= '' then rec.q = queue end
  lie_down(unit, job, n, rec, 0)
  event(job, 'gone', n)
end

-- The opposite of settle, as far as the job's numbers go: a unit that was over is to be done again.
local function reopen(unit, job, n, rec, why)
  local again = rec.gn
  rec.an = (rec.an or 0) + 1
  redis.call('HINCRBY', jobkey(job), 'open', 1)
  if again then -- it was done, and now it is not done at all
    redis.call('HINCRBY', jobkey(job), 'gone', -1)
    rec.gn, rec.ga = nil, nil
    event(job, 'there', n, 'done')
  elseif rec.s == 'cancelled' then
    redis.call('HINCRBY', jobkey(job), 'stopped', -1)
  elseif rec.s ~= 'done' then
    redis.call('HINCRBY', jobkey(job), 'failed', -1)
  end
  if isplan(n) then redis.call('HINCRBY', jobkey(job), 'plans', 1) end
  if rec.pc then
    redis.call('HINCRBY', picture(job, rec.i), 'op', 1)
    if rec.s ~= 'done' and not again then redis.call('HINCRBY', picture(job, rec.i), 'bad', -1) end
  end
  redis.call('ZREM', P .. 'outbox', unit)
  event(job, 'again', n, why)
end

-- Back among the due, at once or after delay_ms; a job that was cancelled meanwhile ends it here.
local function give_back(unit, job, n, rec, delay_ms)
  drop_lease(unit, job, n, rec)
  if cancelled(job) then return settle(unit, job, n, rec, 'cancelled') end
  lie_down(unit, job, n, rec, delay_ms)
end

-- A lease that ran out while nobody could renew it (a paused Redis, a stopped machine) is its holder's again as long as nobody
-- else has claimed the unit: the token is still the last one.
local function regain(unit, job, n, rec, fence)
  if not (rec and rec.s == 'due' and rec.f == fence and rec.x) then return end
  redis.call('ZREM', P .. 'due:' .. rec.q, unit)
  set_state(job, n, rec, 'leased')
  local held, worker, lease = unpack(rec.x)
  rec.w, rec.x, rec.dl, rec.nb = worker, nil, rec.dl - 1, 0
  redis.call('HSET', P .. 'held:' .. worker, unit, held)
  redis.call('ZADD', P .. 'leases', NOW + lease, unit)
  save(job, n, rec)
end

-- Its worker died under it, or was not heard for all of its `lease`. After `limit` deaths it is quarantined: it may be what kills them.
local function release_dead(unit, job, n, rec, limit, lease)
  local held = lease and rec.w and redis.call('HGET', P .. 'held:' .. rec.w, unit)
  if held then rec.x = {held, rec.w, lease} end
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
  local closed = is_closed(store)
  for _, at in ipairs({0, NOW % math.max(1, redis.call('ZCARD', P .. 'short:' .. store))}) do
    for _, unit in ipairs(redis.call('ZRANGE', P .. 'short:' .. store, at, at + most - 1)) do
      local rec, job, n = load(unit)
      if not rec then
        redis.call('ZREM', P .. 'short:' .. store, unit)
      elseif not closed or not can_wait(job, n, rec) then
        wake(unit)
      end
    end
  end
  if redis.call('EXISTS', P .. 'short:' .. store) == 0 then redis.call('SREM', P .. 'shorts', store) end
end

-- Which jobs hold which files is another question now: whoever evicts asks it anew, and some of those that wait may look.
-- of_shards: some shards of a job only; its readers and it itself are what they were.
function holders_changed(of_shards)
  redis.call('INCR', P .. 'holders')
  if not of_shards then redis.call('INCR', P .. 'leavers') end
  for _, store in ipairs(redis.call('SMEMBERS', P .. 'shorts')) do nudge(store, 16) end
end

-- A process reads a job, and holds its files for another ttl_ms: all but those that it released; or of its window, see need.lua.
local function reads(job, reader, ttl)
  local readers = P .. 'readers:' .. job
  if redis.call('ZADD', readers, NOW + ttl, reader) == 1 then
    redis.call('INCR', P .. 'holders')
    redis.call('INCR', P .. 'comers') -- whoever evicts is to know: more is held than it found
    if redis.call('EXISTS', jobkey(job)) == 1 then redis.call('HSET', jobkey(job), 'read', 1) end
  end
  redis.call('ZADD', P .. 'reading', NOW + ttl, job)
  redis.call('ZREMRANGEBYSCORE', readers, '-inf', NOW - 86400000) -- who died while others read on
  redis.call('PEXPIRE', readers, 86400000)
  redis.call('PEXPIRE', P .. 'released:' .. job .. ':' .. reader, ttl * 4)
  redis.call('PEXPIRE', P .. 'window:' .. job .. ':' .. reader, ttl * 4)
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
