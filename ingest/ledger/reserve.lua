-- reserve(unit, fence, store, need, wish, most, moved, published): a unit needs `need` bytes of space in a store that may hold `most`,
-- takes `wish` if there is so much, and has published `published` in all. `moved` of the bytes are there already: a partial file that
-- was counted as used. Sums, not steps, so that a repeated call changes nothing. Returns {"ok", granted}, {"lost"}, {"uncounted"} (the
-- disk is to be counted first), or {"full", missing, why nothing goes, for how many ms, 1 if it can wait, see space.lua}: then the unit is
-- woken when something changes.
-- Shards of a job get space in its order: else the later ones could fill the store, and who reads and lets go in that order would wait
-- for the first for ever. What is needed gets it before all others, the nearest first.
local unit, fence, store = ARGV[2], ARGV[3], ARGV[4]
local need, wish, most = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local moved, published = tonumber(ARGV[8]), tonumber(ARGV[9])
local rec, job, n = load(unit)
regain(unit, job, n, rec, fence)
if not holds(rec, fence) then return {'lost'} end
local key = space(store)
local used = redis.call('HGET', key, 'used')
if not used then return {'uncounted'} end
if rec.sp ~= store then
  leave_space(unit, rec)
  rec.sp = store
  save(job, n, rec)
end
local had = tonumber(redis.call('HGET', key, 'r:' .. unit) or '0')
local out = published - tonumber(redis.call('HGET', key, 'p:' .. unit) or '0')
if out > 0 then -- from what was reserved to what is used
  redis.call('HSET', key, 'p:' .. unit, string.format('%.0f', published))
  add_to(key, 'used', out)
  add_to(key, 'add', out)
  local left = math.max(0, had - out)
  add_to(key, 'res', left - had)
  redis.call('HSET', key, 'r:' .. unit, string.format('%.0f', left))
  had = left
end
if moved > 0 and need > had then
  moved = math.min(moved, tonumber(redis.call('HGET', key, 'used')))
  add_to(key, 'used', -moved)
end
if redis.call('HGET', key, 'most') ~= ARGV[7] then redis.call('HSET', key, 'most', ARGV[7]) end
local room = most - tonumber(redis.call('HGET', key, 'used')) - tonumber(redis.call('HGET', key, 'res') or '0') + had
local yields = can_wait(job, n, rec)
if yields then room = room - most / 10 end
local first = nil
if need > had + moved then
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', P .. 'short:' .. store, '-inf', '(' .. space_place(rec), 'LIMIT', 0, 50)) do
    if split(other) == job then first = other break end
  end
end
if need > had + moved and (first or need > room) then
  if moved > 0 then add_to(key, 'used', moved) end
  wait_short(unit, rec, store)
  save(job, n, rec)
  local dry = redis.call('HMGET', key, 'dry', 'dry_till', 'dry_v')
  local is = dry[1] and NOW < tonumber(dry[2]) and dry[3] == (redis.call('GET', P .. 'holders') or '')
  if first then
    return {'full', math.ceil(math.max(1, need - room)), 'shard ' .. first .. ' of its job comes first' .. (is and '; ' .. dry[1] or ''), 10000}
  end
  if yields then
    local why, ms = for_later(store)
    why = why and 'nobody needs it yet, and its job is read by a window; ' .. why or ''
    return {'full', math.ceil(math.max(1, need - room)), why, ms, 1}
  end
  return {'full', need - room, is and dry[1] or '', is and dry[2] - NOW or 0}
end
local give = wish <= room and wish or need
add_to(key, 'res', give - had)
redis.call('HSET', key, 'r:' .. unit, string.format('%.0f', give))
local waited = rec.sh
if waited then
  leave_short(unit, rec)
  save(job, n, rec)
end
if waited or give < had then nudge(store, 4) end -- those behind it may look, too
return {'ok', give}
