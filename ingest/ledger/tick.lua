-- tick(every_ms, lease_ms, deaths_allowed, abandoned_ms): what any node may do and one at a time does. Returns nil when somebody just did;
-- else {{queue, due, …}, {job to expire, …}, {job abandoned by its submitter, …}, 1 if there is more to take back: tick again, with every_ms 0}.
local every, lease, limit, abandoned = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local last = tonumber(redis.call('GET', P .. 'tick') or '0')
if NOW - last < every then return nil end
redis.call('SET', P .. 'tick', NOW)

-- The ledger was away, or everybody else was, or Redis's clock went ahead: what ran out meanwhile says nothing about who did not renew it,
-- and gets one more term. Not two in a row: where each tick is late, what a dead node held must not stay its own for ever. A time that was
-- given here is known by its half millisecond.
local function prolong(key, from, term, applies)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, from, '+inf')) do
    local was_given = redis.call('ZSCORE', key, member) % 1 ~= 0
    if not was_given and (not applies or applies(member)) then redis.call('ZADD', key, NOW + term + 0.5, member) end
  end
end
local function absence()
  prolong(P .. 'leases', '-inf', lease)
  prolong(P .. 'pictures', '-inf', lease, function(member) return redis.call('HEXISTS', P .. 'picture:' .. member, 'w') == 1 end)
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', P .. 'reading', last, '+inf')) do
    prolong(P .. 'readers:' .. job, last, 60000)
  end
  prolong(P .. 'reading', last, 60000)
  prolong(P .. 'workers', last - lease, 0)
  prolong(P .. 'unsealed', last - abandoned, 0)
  if NOW - last > 60000 then -- nor does it count for the deadlines of jobs
    for _, job in ipairs(redis.call('ZRANGEBYSCORE', P .. 'holding', '+inf', '+inf')) do
      local meta = redis.call('HMGET', jobkey(job), 'again', 'created')
      local since = meta[1] or meta[2]
      if since then redis.call('HSET', jobkey(job), 'again', since + NOW - last) end
    end
  end
  -- And it may be older than what it said before: nothing is evicted until all who read had time to be heard, two renewals long.
  redis.call('SET', P .. 'deaf', NOW + 30000, 'PX', 60000)
end
if last > 0 and NOW - last > lease / 2 then absence() end

local unread = redis.call('ZRANGEBYSCORE', P .. 'reading', '-inf', NOW, 'LIMIT', 0, 500)
for _, job in ipairs(unread) do
  redis.call('ZREM', P .. 'reading', job)
  redis.call('DEL', P .. 'readers:' .. job)
end
if #unread > 0 then holders_changed() end
local lapsed = redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', NOW, 'LIMIT', 0, 500)
for _, unit in ipairs(lapsed) do
  local rec, job, n = load(unit)
  if rec and rec.s == 'leased' then release_dead(unit, job, n, rec, limit, lease) else redis.call('ZREM', P .. 'leases', unit) end
end
-- Moments whose holder was not heard for so long: its node is gone, and any other may take over.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. 'pictures', '-inf', NOW, 'LIMIT', 0, 500)) do
  local job, i = string.match(member, '^(.*)%.(%d+)$')
  local s = redis.call('HGET', picture(job, i), 's')
  if s == 'held' then
    anew(job, i, 'the node that held its snapshot is gone', '')
  elseif s == 'opening' then
    let_go(job, i)
    redis.call('HSET', picture(job, i), 's', 'wanted', 'n', '')
    redis.call('ZADD', P .. 'pictures', NOW, member)
  elseif s ~= 'wanted' then
    redis.call('ZREM', P .. 'pictures', member)
  end
end
local ready = mature(500)
local queues = {}
for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  local due = redis.call('ZCARD', P .. 'due:' .. queue)
  if due > 0 then
    queues[#queues + 1] = queue
    queues[#queues + 1] = due
  else
    redis.call('SREM', P .. 'queues', queue)
  end
end
redis.call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', NOW - 86400000)
return {queues,
  redis.call('ZRANGEBYSCORE', P .. 'expire', '-inf', NOW, 'LIMIT', 0, 50),
  redis.call('ZRANGEBYSCORE', P .. 'unsealed', '-inf', NOW - abandoned, 'LIMIT', 0, 50),
  (#lapsed == 500 or ready == 500) and 1 or 0}
