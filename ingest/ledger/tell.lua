-- tell(job, consumer, ttl_ms, progress): how far a consumer of a job has come, as JSON, for ttl_ms; "": it is over. Those that have
-- not been heard for as long go.
local job, consumer, ttl, progress = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local said, heard = P .. 'consumers:' .. job, P .. 'consuming:' .. job
local gone = redis.call('ZRANGEBYSCORE', heard, '-inf', NOW)
if progress == '' then
  gone[#gone + 1] = consumer
else
  redis.call('HSET', said, consumer, progress)
  redis.call('ZADD', heard, NOW + ttl, consumer)
end
for _, each in ipairs(gone) do
  redis.call('HDEL', said, each)
  redis.call('ZREM', heard, each)
end
redis.call('PEXPIRE', said, ttl)
redis.call('PEXPIRE', heard, ttl)
return 1
