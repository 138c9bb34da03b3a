-- read(reader, ttl_ms, job, …): a process reads these jobs, and holds their files for another ttl_ms; 0: it does not any more.
local reader, ttl = ARGV[2], tonumber(ARGV[3])
local changed = false
for at = 4, #ARGV do
  local job = ARGV[at]
  local readers, released = P .. 'readers:' .. job, P .. 'released:' .. job .. ':' .. reader
  if ttl > 0 then
    if redis.call('ZADD', readers, NOW + ttl, reader) == 1 then
      redis.call('INCR', P .. 'holders')
      redis.call('INCR', P .. 'comers') -- whoever evicts is to know: more is held than it found
      if redis.call('EXISTS', jobkey(job)) == 1 then redis.call('HSET', jobkey(job), 'read', 1) end
    end
    redis.call('ZADD', P .. 'reading', NOW + ttl, job)
    redis.call('PEXPIRE', readers, 86400000)
    redis.call('PEXPIRE', released, ttl * 4)
  else
    if redis.call('ZREM', readers, reader) == 1 then changed = true end
    redis.call('DEL', released)
    local last = redis.call('ZREVRANGE', readers, 0, 0, 'WITHSCORES')
    if last[2] then redis.call('ZADD', P .. 'reading', last[2], job) else redis.call('ZREM', P .. 'reading', job) end
  end
end
if changed then holders_changed() end
return 1
