-- planned(job, planner, fence, cursor, most, spec, facts, …): shards that a piece of planning found. Its lease is checked and its cursor kept,
-- which names the batch: the same one is added once. `most`: how many units of the job may be open before it is to rest (0: any number).
-- Returns "ok", "ahead" (added; rest: you are woken), "cancelled", "lost", "unknown".
local job, planner, fence, cursor, most = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
if redis.call('EXISTS', jobkey(job)) == 0 then return 'unknown' end
if cancelled(job) then return 'cancelled' end
local rec, _, n = load(planner)
if not holds(rec, fence) then return 'lost' end
if cursor ~= '' and rec.cu == cursor then return 'ok' end
rec.cu = cursor
save(job, n, rec)
add_units(job, '', nil, 7, rec.pc and rec.i)
if most > 0 and tonumber(redis.call('HGET', jobkey(job), 'open')) > most then
  redis.call('HSET', jobkey(job), 'low', math.floor(most / 2))
  redis.call('SADD', P .. 'waiting:' .. job .. '/ahead', planner)
  redis.call('EXPIRE', P .. 'waiting:' .. job .. '/ahead', 86400)
  return 'ahead'
end
return 'ok'
