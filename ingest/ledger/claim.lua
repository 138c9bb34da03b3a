-- claim(worker, pid, max_held, lease_ms, queue, …): the best due unit of the first queue that has one, what is needed first of all queues, as
-- {unit, fence, record, spec, options, earlier result, ms since the job was made or retried or this unit's files were gone, why its origin is taken for down} – or "full" when this worker holds max_held already, "unfit", "busy", or nil.
-- A process holds one unit at most: asking again gives that one again, so a lost reply is harmless.
local worker, pid, max_held, lease = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local held = P .. 'held:' .. worker

-- An origin that did not answer five times in a row is looked at by one claim at a time, every few seconds: shards of it wait
-- meanwhile, uncounted, and do not keep processes from the shards of others. After three minutes they are handed out to be failed:
-- that is as long as an origin is waited for. Returns seconds to wait and why; 0 and why: it is down; nil: try it.
local function down(rec)
  local key = P .. 'origin:' .. rec.o
  local is = redis.call('HMGET', key, 'u', 's', 'er')
  if not is[1] then return nil end
  local till, away = tonumber(is[1]), NOW - tonumber(is[2])
  if till <= NOW then
    redis.call('HSET', key, 'u', NOW + 15000, 'probe', 1) -- this one looks
    return nil
  end
  local why = rec.o .. ' has not answered for ' .. math.floor(away / 1000) .. ' s; the last it said: ' .. is[3]
  if away > 180000 then return 0, why end
  return till - NOW + NOW * 7919 % 3000, why -- not all in one moment
end

local function handed(unit, rec, job, n, why)
  local meta = redis.call('HMGET', jobkey(job), 'options', 'again', 'created')
  return {unit, rec.f, cjson.encode(rec), redis.call('HGET', jobkey(job, 'spec'), n) or '', meta[1],
    redis.call('HGET', jobkey(job, 'done'), n) or '', NOW - tonumber(rec.ga or meta[2] or meta[3]), why or ''}
end

-- The best of a queue; with `ahead`, only what is needed. Where something always is, each sixteenth turn is for the rest: nobody starves.
local rests = {}
local function best_of(queue, ahead)
  local due = P .. 'due:' .. queue
  local best = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
  if not best[1] then return nil end
  if tonumber(best[2]) >= 0 then
    if ahead then return nil end
  elseif not rests[queue] and tonumber(redis.call('GET', P .. 'turns:' .. queue) or '0') >= 15 then
    rests[queue] = true
    local rest = redis.call('ZRANGEBYSCORE', due, 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if rest[1] then best = rest end
  end
  redis.call('ZREM', due, best[1])
  return best[1], tonumber(best[2])
end

local mine = redis.call('HGETALL', held)
for at = 1, #mine, 2 do
  local whose, fence = string.match(mine[at + 1], '^(%S+) (.+)$')
  if whose == pid then
    local rec, job, n = load(mine[at])
    if holds(rec, fence) then
      rec.re = 1
      return handed(mine[at], rec, job, n)
    end
    redis.call('HDEL', held, mine[at])
  end
end
if redis.call('HLEN', held) >= max_held then return 'full' end
-- A node that says of itself that its store cannot be worked in gets nothing.
local node = decoded(redis.call('GET', P .. 'worker:' .. worker)) or {}
if (node.unfit or '') ~= '' then return 'unfit' end
local closed = node.store and is_closed(node.store)
-- A job of a hundred thousand shards that is being cancelled, or whose origin is down, is not gone through by one claim: that would
-- hold up everybody.
local patience = 200
mature(100)
for look = 1, 2 do
  for at = 6, #ARGV do
    local queue = ARGV[at]
    while true do
      local unit, score = best_of(queue, look == 1)
      if not unit then break end
      local rec, job, n = load(unit)
      if rec and rec.s == 'due' then
        local over = cancelled(job)
        local wait, why = nil, nil
        if not over then wait, why = down(rec) end
        if over then
          settle(unit, job, n, rec, 'cancelled')
        elseif wait and wait > 0 then
          rec.nb, rec.er, rec.bo = NOW + wait, why, 1
          redis.call('ZADD', P .. 'delayed', rec.nb, unit)
          save(job, n, rec)
        elseif closed and can_wait(job, n, rec) then
          rec.nb, rec.er = NOW + 60000 + NOW * 7919 % 15000, 'waits until it is needed, or there is room: its job is read by a window'
          wait_short(unit, rec, node.store)
          redis.call('ZADD', P .. 'delayed', rec.nb, unit)
          save(job, n, rec)
        else
          local vtime, turns = P .. 'vtime:' .. queue, P .. 'turns:' .. queue
          if score > tonumber(redis.call('GET', vtime) or '0') then redis.call('SET', vtime, score) end
          if score < 0 then
            redis.call('INCR', turns)
            redis.call('PEXPIRE', turns, 600000)
          else
            redis.call('DEL', turns)
          end
          rec.re = rec.f and 1 or nil
          -- The clock beside the counter: a ledger that was flushed, or restored from an older file, counts anew.
          rec.f = math.floor(NOW / 1000) .. '.' .. CLOCK[2] .. '-' .. string.format('%d', redis.call('INCR', P .. 'fence'))
          rec.w, rec.x, rec.bo, rec.wk = worker, nil, nil, nil
          set_state(job, n, rec, 'leased')
          save(job, n, rec)
          redis.call('ZADD', P .. 'leases', NOW + lease, unit)
          redis.call('HSET', held, unit, pid .. ' ' .. rec.f)
          return handed(unit, rec, job, n, why)
        end
        patience = patience - 1
        if patience == 0 then return 'busy' end
      end
    end
  end
end
return nil
