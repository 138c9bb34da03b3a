-- add(job, kind, start, upto, planner, fence, cursor, spec, facts, …): shards (kind "") or pieces of planning (kind "p"),
-- of which the first is the submitter's `start`th; facts is JSON {i, p, c, o, q}. What of a batch is already there is not added
-- again, so a lost reply may be retried, and a submission taken up again. Planners add shards meanwhile: a shard's number is the
-- next one of all, not the submitter's. With a planner, its lease is checked and its cursor kept, and upto is how many units of the job
-- may be open before it is to rest (0: any number). Returns "ok", "ahead" (rest: you are woken), "cancelled", "lost", "unknown", or to a
-- submitter "given up": it was not heard for so long that its job ended without it.
local job, kind, start, upto = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local planner, fence, cursor = ARGV[6], ARGV[7], ARGV[8]
if redis.call('EXISTS', jobkey(job)) == 0 then return 'unknown' end
if cancelled(job) then return 'cancelled' end
if planner == '' and redis.call('HEXISTS', jobkey(job), 'error') == 1 then -- no retry makes it whole
  return redis.call('HEXISTS', jobkey(job), 'given_up') == 1 and 'given up' or 'cancelled'
end
local pictured = nil
if planner ~= '' then
  local rec, _, n = load(planner)
  if not holds(rec, fence) then return 'lost' end
  if cursor ~= '' and rec.cu == cursor then return 'ok' end
  rec.cu = cursor
  pictured = rec.pc and rec.i
  save(job, n, rec)
end
local counter = kind == 'p' and 'plan_next' or 'next'
local sent = kind == 'p' and 'plan_next' or 'sent'
local there = planner == '' and tonumber(redis.call('HGET', jobkey(job), sent) or '0') or 0
local number = tonumber(redis.call('HGET', jobkey(job), counter))
local files = 0
local added = 0
for at = 9, #ARGV, 2 do
  if planner ~= '' or start + (at - 9) / 2 >= there then
    local n = kind .. string.format('%d', number)
    local rec = cjson.decode(ARGV[at + 1])
    rec.s, rec.at, rec.dl = 'due', 0, 0
    if pictured then
      rec.pc = 1
      redis.call('RPUSH', P .. 'pictured:' .. job .. '.' .. pictured, n)
    end
    redis.call('HSET', jobkey(job, 'spec'), n, ARGV[at])
    push_due(job .. '.' .. n, job, n, rec)
    save(job, n, rec)
    count(job, n, nil, 'due')
    files = files + rec.c
    added = added + 1
    number = number + 1
  end
end
redis.call('HSET', jobkey(job), counter, number)
if planner == '' and kind ~= 'p' then redis.call('HINCRBY', jobkey(job), sent, added) end
redis.call('HINCRBY', jobkey(job), 'open', added)
if pictured then redis.call('HINCRBY', picture(job, pictured), 'op', added) end
if kind == 'p' then redis.call('HINCRBY', jobkey(job), 'plans', added) else redis.call('HINCRBY', jobkey(job), 'files', files) end
if planner == '' then
  redis.call('HSET', jobkey(job), 'upto', upto)
  redis.call('ZADD', P .. 'unsealed', 'XX', NOW, job)
end
event(job, 'add')
local most = planner ~= '' and tonumber(upto) or 0
if most > 0 and tonumber(redis.call('HGET', jobkey(job), 'open')) > most then
  redis.call('HSET', jobkey(job), 'low', math.floor(most / 2))
  redis.call('SADD', P .. 'waiting:' .. job .. '/ahead', planner)
  redis.call('EXPIRE', P .. 'waiting:' .. job .. '/ahead', 86400)
  return 'ahead'
end
return 'ok'
