-- hold(worker, node, lease_ms, lapse_ms, room, connections, connection, …, (picture, generation), …): a keeper's round. What it holds or opens is
-- its for one more lease; what it should and does not is lost; and it takes up to `room` of those that nobody opens: its own node's, and others'
-- that nobody took for lapse_ms. Returns {{picture to let go, …}, {picture, generation, connection, source, refusals so far, …}}.
local worker, node, lease, lapse, room = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local known, listed, past, taken = {}, {}, {}, {}
local first = 8 + tonumber(ARGV[7])
for at = 8, first - 1 do known[ARGV[at]] = true end
for at = first, #ARGV, 2 do
  local member = ARGV[at]
  local is = redis.call('HMGET', P .. 'picture:' .. member, 'g', 's', 'w')
  if is[1] == ARGV[at + 1] and is[3] == worker and (is[2] == 'held' or is[2] == 'opening') then
    redis.call('ZADD', P .. 'pictures', NOW + lease, member)
    listed[member] = true
  else
    past[#past + 1] = member
  end
end
for _, member in ipairs(redis.call('SMEMBERS', P .. 'holds:' .. worker)) do
  if not listed[member] then
    local job, i = string.match(member, '^(.*)%.(%d+)$')
    redis.call('SREM', P .. 'holds:' .. worker, member)
    local is = redis.call('HMGET', picture(job, i), 's', 'w')
    if is[2] == worker and is[1] == 'held' then
      anew(job, i, 'the process that held its snapshot is gone', node)
    elseif is[2] == worker and is[1] == 'opening' then
      redis.call('HSET', picture(job, i), 's', 'wanted')
      redis.call('HDEL', picture(job, i), 'w')
      redis.call('ZADD', P .. 'pictures', NOW, member)
    end
  end
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. 'pictures', '-inf', NOW, 'LIMIT', 0, 500)) do
  if room == 0 then break end
  local key = P .. 'picture:' .. member
  local is = redis.call('HMGET', key, 's', 'n', 'g', 'c', 'u', 'rf')
  if is[1] == 'wanted' and known[is[4]] then
    local since = tonumber(redis.call('ZSCORE', P .. 'pictures', member))
    if is[2] == node or is[2] == '' or NOW - since > lapse then
      redis.call('HSET', key, 's', 'opening', 'w', worker, 'n', node)
      redis.call('SADD', P .. 'holds:' .. worker, member)
      redis.call('ZADD', P .. 'pictures', NOW + lease, member)
      for _, value in ipairs({member, is[3], is[4], is[5], is[6]}) do taken[#taken + 1] = value end
      room = room - 1
    end
  end
end
return {past, taken}
