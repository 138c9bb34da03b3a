-- read(reader, ttl_ms, job, …): a process reads these jobs, and holds their files for another ttl_ms; 0: it does not any more.
local reader, ttl = ARGV[2], tonumber(ARGV[3])
local changed = false
for at = 4, #ARGV do
  local job = ARGV[at]
  if ttl > 0 then
    reads(job, reader, ttl)
  else
    local readers = P .. 'readers:' .. job
    if redis.call('ZREM', readers, reader) == 1 then changed = true end
    redis.call('DEL', P .. 'released:' .. job .. ':' .. reader, P .. 'window:' .. job .. ':' .. reader)
    local last = redis.call('ZREVRANGE', readers, 0, 0, 'WITHSCORES')
    if last[2] then redis.call('ZADD', P .. 'reading', last[2], job) else redis.call('ZREM', P .. 'reading', job) end
    if not last[2] then redis.call('DEL', P .. 'windowed:' .. job) end
  end
end
if changed then holders_changed() end
return 1
