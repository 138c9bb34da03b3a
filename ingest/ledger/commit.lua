-- commit(unit, fence, state, result, files, failed, bytes, flight, …): the end of a unit: done, failed or cancelled.
-- Returns {"ok", due in its queue, queue} or {"lost"}: a token that is not the last one commits nothing.
local unit, fence, state = ARGV[2], ARGV[3], ARGV[4]
local rec, job, n = load(unit)
local flights = {}
for at = 9, #ARGV do flights[#flights + 1] = ARGV[at] end
regain(unit, job, n, rec, fence)
if not holds(rec, fence) then
  if rec and rec.f == fence and rec.s == state then return {'ok', 0, rec.q} end
  return {'lost'}
end
local files, failed, bytes = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
if ARGV[5] ~= '' then redis.call('HSET', jobkey(job, 'done'), n, ARGV[5]) end
redis.call('HINCRBY', jobkey(job), 'files_done', files - (rec.fd or 0))
redis.call('HINCRBY', jobkey(job), 'files_failed', failed - (rec.ff or 0))
redis.call('HINCRBY', jobkey(job), 'bytes', string.format('%.0f', bytes - (rec.by or 0)))
rec.fd, rec.ff, rec.by = files, failed, bytes
if state == 'cancelled' and not cancelled(job) then
  give_back(unit, job, n, rec, 0) -- it was told to stop, and meanwhile somebody said "retry"
else
  settle(unit, job, n, rec, state)
end
land(unit, flights)
return {'ok', redis.call('ZCARD', P .. 'due:' .. rec.q), rec.q}
