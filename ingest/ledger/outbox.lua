-- outbox(limit, again_ms): units and jobs whose Celery result is to be written by who asks; whoever ended them had a moment to do so. Those
-- of which it is not said in again_ms that it is written are given to the next who asks.
local members = redis.call('ZRANGEBYSCORE', P .. 'outbox', '-inf', NOW - 2000, 'LIMIT', 0, ARGV[2])
for _, member in ipairs(members) do redis.call('ZADD', P .. 'outbox', NOW + tonumber(ARGV[3]) - 2000, member) end
return members
