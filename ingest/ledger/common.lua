-- Shared by every script: names of keys, and the records of units. After it come, in this order, `due` (the order of work), `space`,
-- `units` (the few transitions that all others are made of), `pictures` and `submit`; see redis.py.
-- A unit is "<job>.<n>" (a shard) or "<job>.p<n>" (a piece of planning). Its record is JSON in the hash job:<id>:shard:
--   s state   q queue   i source of its first file   p part of it   c files listed   o origin   f fence of the last lease
--   w worker  at attempts  dl worker deaths  nb due at (ms)  er last reason  fd files done  ff files failed  by bytes done
--   x process and fence, worker, and ms of a lease that ran out   bo 1: backs off from an origin   wk 1: what it waited for has landed
--   hw bytes that were here when an attempt began, the most so far   re 1: it was claimed before
--   pc 1: it belongs to the picture of its source, see pictures.lua   an how often its end was taken back
--   gn 1: it was over, and is fetched again since files of it are gone from a store   ga since when (ms)   nd, nq, nr, nt see due.lua
--   sp the store in which it has reserved space   sh the one in which it waits for space
-- Times are the ledger's own, in milliseconds, see below. Keys are built here, so this ledger lives in one Redis, not in a cluster.
local P = ARGV[1]
local CLOCK = redis.call('TIME')

-- The ledger's clock is that of Redis, but does not go back with it (a machine that was restored, NTP): all leases, delays and heartbeats
-- would stand still for as long. Kept are its reading, once a second, and by how much it is ahead of Redis's; it waits for that
-- one, as much as it can, where a minute seems to have gone by: Redis's clock was set right, or nobody asked.
local function clock()
  local last, ahead = string.match(redis.call('GET', P .. 'clock') or '0 0', '^(%d+) (%d+)$')
  last, ahead = tonumber(last), tonumber(ahead)
  local now = CLOCK[1] * 1000 + math.floor(CLOCK[2] / 1000) + ahead
  if now < last then
    now, ahead = last, ahead + last - now
  elseif now - last > 60000 then
    local late = math.min(ahead, now - last)
    now, ahead = now - late, ahead - late
  elseif now - last < 1000 then
    return now
  end
  redis.pcall('SET', P .. 'clock', string.format('%.0f %.0f', now, ahead)) -- a full Redis still clears away
  return now
end
local NOW = clock()

local function jobkey(job, part)
  if part then return P .. 'job:' .. job .. ':' .. part end
  return P .. 'job:' .. job
end

local function split(unit)
  return string.match(unit, '^(.*)%.(p?%d+)$')
end

-- The record of a unit, nil where there is none. Without its job a unit is nothing, nor is a record that cannot be read: a hash that
-- somebody deleted, or wrote into, must not stop a script half-way, and with it the work of all other jobs.
local function load(unit)
  local job, n = split(unit)
  if not job or redis.call('HEXISTS', jobkey(job), 'options') == 0 then return nil end
  local text = redis.call('HGET', jobkey(job, 'shard'), n)
  if not text then return nil end
  local whole, rec = pcall(cjson.decode, text)
  if not whole or type(rec) ~= 'table' then return nil end
  return rec, job, n
end

-- JSON that a client or a worker wrote, nil where it cannot be read. A file name that is not UTF-8 may be in it, as half of a surrogate pair,
-- which is JSON for Python and not for cjson: of such a text nothing hangs here.
local function decoded(text)
  local whole, found = pcall(cjson.decode, (string.gsub(text or '', '\\u[dD][89a-fA-F]%x%x', '\\u003f')))
  return whole and type(found) == 'table' and found or nil
end

local function save(job, n, rec)
  redis.call('HSET', jobkey(job, 'shard'), n, cjson.encode(rec))
end

local function isplan(n)
  return string.sub(n, 1, 1) == 'p'
end

local function event(job, kind, n, state)
  redis.call('XADD', jobkey(job, 'events'), '*', 'k', kind, 'n', n or '', 's', state or '')
end

-- How many shards of a job are in each state; planning is not among them.
local function count(job, n, from, to)
  if isplan(n) then return end
  if from then redis.call('HINCRBY', jobkey(job), 'c:' .. from, -1) end
  if to then redis.call('HINCRBY', jobkey(job), 'c:' .. to, 1) end
end

local function set_state(job, n, rec, to)
  count(job, n, rec.s, to)
  rec.s = to
end

local function holds(rec, fence)
  return rec and rec.s == 'leased' and rec.f == fence
end

local function cancelled(job)
  return redis.call('HGET', jobkey(job), 'cancelled') == '1'
end
