-- back(unit, fence, delay_ms, counted, reason, result, files, failed, bytes, flight, …): the unit goes back among the due with what
-- it has so far. counted: 1 if this was an attempt that failed, 2 if it failed and got further: then counting begins anew. Returns {"ok", due in its queue, queue} or {"lost"}.
local unit, fence, delay, counted = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local rec, job, n = load(unit)
regain(unit, job, n, rec, fence)
if not holds(rec, fence) then
  if rec and rec.f == fence then return {'ok', 0, rec.q} end
  return {'lost'}
end
rec.er = ARGV[6]
rec.bo = nil
if counted ~= '0' then
  leave_short(unit, rec) -- it waits for its origin
  rec.at, rec.bo = counted == '1' and rec.at + 1 or 0, 1
  redis.call('HINCRBY', jobkey(job), 'retries', 1)
elseif rec.wk then
  delay = 0
end
rec.wk = nil
if ARGV[7] ~= '' then
  redis.call('HSET', jobkey(job, 'done'), n, ARGV[7])
  redis.call('SADD', jobkey(job, 'parted'), n) -- has files of which no manifest may say, perhaps in another node's store
  local files, failed, bytes = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
  redis.call('HINCRBY', jobkey(job), 'files_done', files - (rec.fd or 0))
  redis.call('HINCRBY', jobkey(job), 'files_failed', failed - (rec.ff or 0))
  redis.call('HINCRBY', jobkey(job), 'bytes', string.format('%.0f', bytes - (rec.by or 0)))
  if files > (rec.fd or 0) then event(job, 'part', n) end
  rec.fd, rec.ff, rec.by = files, failed, bytes
end
rec.dl = 0
give_back(unit, job, n, rec, delay)
local flights = {}
for at = 11, #ARGV do flights[#flights + 1] = ARGV[at] end
land(unit, flights)
return {'ok', redis.call('ZCARD', P .. 'due:' .. rec.q), rec.q}
