-- need(job, reader, ttl_ms, holds, queue, gone, (shard, times its end was taken back) × gone, shard, …): these shards, nearest first, are all that a
-- reader needs now. What is due among them goes before all that nobody needs; what is delayed keeps its time. Those that are `gone` from the
-- reader's store though they are done are fetched again from `queue` ("": their own), unless somebody has said so before.
-- holds: "window", the reader holds the files of these shards alone; "all", those of the job; "", none. What it needed before and does
-- not any more is in its place again. Returns {{queue to ring for, …}, {shard whose files are not held, …}}.
local job, reader, ttl, holds_what, queue = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local first = 8 + 2 * tonumber(ARGV[7])
local key = P .. 'window:' .. job .. ':' .. reader
local before, now = {}, {}
local had = redis.call('HGETALL', key)
for at = 1, #had, 2 do before[had[at]] = had[at + 1] end
for at = first, #ARGV do now[ARGV[at]] = true end
local place = tonumber(redis.call('INCR', P .. 'needs')) % 1099511627776
local queues, loose = {}, {}

if holds_what ~= '' then reads(job, reader, ttl) end
if holds_what == 'window' then redis.call('SET', P .. 'windowed:' .. job, NOW + ttl, 'PX', ttl) end

-- Where it stands by now, in whichever line that is.
local function move_up(unit, rec, score)
  redis.call('ZADD', P .. 'due:' .. rec.q, 'XX', string.format('%.0f', score), unit)
  if rec.sh then redis.call('ZADD', P .. 'short:' .. rec.sh, 'XX', space_place(rec), unit) end
end

local function mark(unit, n, rec, distance)
  local mine = needed(rec) and rec.nr == reader
  local nq = mine and rec.nq or place
  if needed(rec) and not mine and (rec.nd < distance or (rec.nd == distance and rec.nq < nq)) then return end -- another is nearer
  if mine and rec.nd == distance and rec.nt > NOW + ttl * 0.75 then return end
  rec.nd, rec.nq, rec.nr, rec.nt = distance, nq, reader, NOW + ttl
  if rec.s == 'due' then move_up(unit, rec, need_score(rec)) end
  save(job, n, rec)
end

local again = {}
for at = 8, first - 1, 2 do again[ARGV[at]] = tonumber(ARGV[at + 1]) end
if cancelled(job) then again = {} end
local held, stuck = {}, false
for at = first, #ARGV do
  local n = ARGV[at]
  local unit = job .. '.' .. n
  local rec = load(unit)
  local is_held = not stuck
  if rec and rec.s == 'done' and again[n] == (rec.an or 0) then
    rec.nd, rec.nq, rec.nr, rec.nt = math.min(at - first, FAR), place, reader, NOW + ttl
    fetch_again(unit, job, n, rec, queue)
    queues[#queues + 1] = rec.q
  elseif rec and (rec.s == 'due' or rec.s == 'leased') then
    -- It has looked for space and there is none: then what this reader needs later must not be what is in its way.
    if needed(rec) and string.sub(rec.er or '', 1, 7) == 'NoRoom:' then
      if rec.s == 'due' and rec.nb > NOW then
        stuck = true
      elseif rec.s == 'leased' and ARGV[at + 1] and before[ARGV[at + 1]] == '0' then
        stuck = true -- it looks again just now
      end
    end
    local fresh = not needed(rec)
    mark(unit, n, rec, math.min(at - first, FAR))
    if fresh and rec.s == 'due' and rec.sh then -- for what is needed, more may be evicted
      wake(unit)
      queues[#queues + 1] = rec.q
    end
  end
  held[#held + 1] = n
  held[#held + 1] = is_held and '1' or '0'
  if not is_held then loose[#loose + 1] = n end
end

local less = holds_what == 'window' and before['-'] ~= 'window'
for n, was in pairs(before) do
  if n ~= '-' and not now[n] then
    if was == '1' then less = true end
    local rec = load(job .. '.' .. n)
    if rec and rec.nr == reader and (rec.s == 'due' or rec.s == 'leased') then
      rec.nd, rec.nq, rec.nr, rec.nt = nil, nil, nil, nil
      if rec.s == 'due' then move_up(job .. '.' .. n, rec, tonumber(redis.call('GET', P .. 'vtime:' .. rec.q) or '0') + 1) end
      save(job, n, rec)
    end
  end
end
for _, n in ipairs(loose) do less = less or before[n] == '1' end
redis.call('DEL', key)
redis.call('HSET', key, '-', holds_what)
for at = 1, #held, 2000 do -- a window is some dozens, a thousand at most; but a process may have several, and Lua's stack has an end
  redis.call('HSET', key, unpack(held, at, math.min(at + 1999, #held)))
end
redis.call('PEXPIRE', key, ttl * 4)
if less and holds_what == 'window' then holders_changed(true) end
return {queues, loose}
