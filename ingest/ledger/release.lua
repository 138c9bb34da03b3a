-- release(job, reader, ttl_ms, shard, …): a reader has done with these shards: their files may go once every reader of the job has.
local job, reader = ARGV[2], ARGV[3]
if not redis.call('ZSCORE', P .. 'readers:' .. job, reader) then return 0 end
local key = P .. 'released:' .. job .. ':' .. reader
local new = 0
for at = 5, #ARGV do new = new + redis.call('SADD', key, ARGV[at]) end
redis.call('PEXPIRE', key, ARGV[4] * 4)
if new > 0 then holders_changed(true) end
return new
