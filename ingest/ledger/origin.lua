-- origin(name, failures, reason): what a claim learned of an origin: that it answered (0 failures), or that it did not answer, so
-- often and never in between. See down() in claim.lua for what follows from it.
local key, failures, why = P .. 'origin:' .. ARGV[2], tonumber(ARGV[3]), ARGV[4]
if failures == 0 then return redis.call('DEL', key) end
redis.call('HSETNX', key, 's', NOW)
local count = redis.call('HINCRBY', key, 'f', failures)
redis.call('PEXPIRE', key, 600000)
local till = tonumber(redis.call('HGET', key, 'u') or '0')
-- Those that were at it when it went tell the same story: it is told once.
if count >= 5 and (till <= NOW or redis.call('HDEL', key, 'probe') == 1) then
  local rounds = redis.call('HINCRBY', key, 'r', 1)
  redis.call('HSET', key, 'u', NOW + math.min(30000, 1000 * 2 ^ rounds), 'er', why)
end
return count
