-- claim(worker, pid, max_held, lease_ms, queue, …): the best due unit of the first queue that has one, as
-- {unit, fence, record, spec, options, earlier result, ms since the job was made or retried} – or "full" when this worker holds max_held already, "busy", or nil.
-- A process holds one unit at most: asking again gives that one again, so a lost reply is harmless.
local worker, pid, max_held, lease = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local held = P .. 'held:' .. worker

local function handed(unit, rec, job, n)
  local meta = redis.call('HMGET', jobkey(job), 'options', 'again', 'created')
  return {unit, rec.f, cjson.encode(rec), redis.call('HGET', jobkey(job, 'spec'), n), meta[1],
    redis.call('HGET', jobkey(job, 'done'), n) or '', NOW - tonumber(meta[2] or meta[3])}
end

local mine = redis.call('HGETALL', held)
for at = 1, #mine, 2 do
  local whose, fence = string.match(mine[at + 1], '^(%S+) (.+)$')
  if whose == pid then
    local rec, job, n = load(mine[at])
    if holds(rec, fence) then return handed(mine[at], rec, job, n) end
    redis.call('HDEL', held, mine[at])
  end
end
if redis.call('HLEN', held) >= max_held then return 'full' end
-- A job of a hundred thousand shards that is being cancelled is not ended by one claim: that would hold up everybody.
local patience = 200
mature(100)
for at = 6, #ARGV do
  local queue = ARGV[at]
  while true do
    local best = redis.call('ZPOPMIN', P .. 'due:' .. queue)
    if #best == 0 then break end
    local unit = best[1]
    local rec, job, n = load(unit)
    if rec and rec.s == 'due' then
      if cancelled(job) then
        settle(unit, job, n, rec, 'cancelled')
        patience = patience - 1
        if patience == 0 then return 'busy' end
      else
        local vtime = P .. 'vtime:' .. queue
        if tonumber(best[2]) > tonumber(redis.call('GET', vtime) or '0') then redis.call('SET', vtime, best[2]) end
        -- The clock beside the counter: a ledger that was flushed, or restored from an older file, counts anew.
        rec.f = CLOCK[1] .. '.' .. CLOCK[2] .. '-' .. string.format('%d', redis.call('INCR', P .. 'fence'))
        rec.w, rec.x, rec.xw, rec.bo, rec.wk = worker, nil, nil, nil, nil
        set_state(job, n, rec, 'leased')
        save(job, n, rec)
        redis.call('ZADD', P .. 'leases', NOW + lease, unit)
        redis.call('HSET', held, unit, pid .. ' ' .. rec.f)
        return handed(unit, rec, job, n)
      end
    end
  end
end
return nil
