-- A picture is a source whose partitions are read at one moment, or whose cursor moves on when all of it is there: the planner makes
-- it, and "JOB.SOURCE" names it. Its hash:
--   s state: none (no moment is needed), wanted, opening, held, refused, over   k none, held (by a process) or file (it can be
--   recognised)   g generation   id the moment   n node, c connection, u source, w worker that holds it   er, ec why not, and the class
--   of that error   tr moments lost   most how many may be   rf refusals in a row   pu unit that plans it   op units that are not over
--   bad units that are over and not done   plan packed partitions   ck, cf, cv cursor: its key, the value to begin after and the last
function picture(job, i)
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
function leave_picture(job, i, state)
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
      local over = rec.gn or (rec.s ~= 'leased' and rec.s ~= 'due')
      if rec.s == 'leased' then drop_lease(unit, job, n, rec) end
      redis.call('ZREM', P .. 'due:' .. rec.q, unit)
      redis.call('ZREM', P .. 'delayed', unit)
      if over then reopen(unit, job, n, rec, 'anew') end
      redis.call('HINCRBY', jobkey(job), 'files_done', 0 - (rec.fd or 0)) -- a mere minus makes "-0", which is no integer
      redis.call('HINCRBY', jobkey(job), 'files_failed', 0 - (rec.ff or 0))
      redis.call('HINCRBY', jobkey(job), 'bytes', string.format('%.0f', 0 - (rec.by or 0)))
      local had = redis.call('HGET', jobkey(job, 'done'), n)
      if had then -- kept aside for whoever reads it again: of what into= made, nothing is to stay
        redis.call('HSET', jobkey(job, 'done'), 'old:' .. n, had)
        redis.call('HDEL', jobkey(job, 'done'), n)
        event(job, 'anew', n)
      end
      begin_anew(rec)
      rec.fd, rec.ff, rec.by, rec.er = 0, 0, 0, why
      lie_down(unit, job, n, rec, is[2] == 'held' and not spent and 30000 or 0) -- it is woken when the moment is there
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
