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
