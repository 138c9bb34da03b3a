-- The space of a store is a hash: used, bytes as last counted and published since; r:UNIT what a unit may still write, res the sum of
-- all r; p:UNIT what it has published; add all that units ever added to used; dry, why nothing can be evicted, till when, and as of which holders;
-- later, later_till: the same for those who can wait; most, how much it may hold.
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

-- Where a unit stands among those that wait for space: what is needed in its order, before the rest in that of its job.
local function space_place(rec)
  return string.format('%.0f', needed(rec) and need_score(rec) or (rec.i or 0) * 67108864 + (rec.p or 0))
end

-- Of a job that is read by a window, what nobody needs yet can wait: for it nothing is evicted that such a job has fetched. Else it would
-- drive out what is there for what comes, and that would be needed first, or neither.
local function can_wait(job, n, rec)
  return not needed(rec) and not isplan(n) and tonumber(redis.call('GET', P .. 'windowed:' .. job) or '0') > NOW
end

-- Why nothing may go for those who can wait, and for how many ms that is known, unless a job or a reader goes. Whether they have to wait: the store is full, and it was found out just now that nothing else may go. A tenth of it is left to
-- what is needed: an eviction makes a twentieth more room than was asked for, and that is not for them.
local function for_later(store)
  local is = redis.call('HMGET', space(store), 'later', 'later_till', 'later_v')
  if not is[1] or tonumber(is[2]) < NOW or is[3] ~= (redis.call('GET', P .. 'leavers') or '') then return nil, 0 end
  return is[1], is[2] - NOW
end

local function is_closed(store)
  local is = redis.call('HMGET', space(store), 'most', 'used', 'res')
  return is[1] and is[2] and is[1] * 0.9 - is[2] - (is[3] or '0') <= 0 and for_later(store) ~= nil
end

local function wait_short(unit, rec, store)
  if rec.sh ~= store then leave_short(unit, rec) end
  rec.sh = store
  redis.call('ZADD', P .. 'short:' .. store, space_place(rec), unit)
  redis.call('SADD', P .. 'shorts', store)
end
