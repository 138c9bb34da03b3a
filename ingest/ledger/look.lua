-- look(unit, fence, kind, node, connection, source, most): the picture that a unit belongs to, as {state, generation, moment, why not, class of
-- that error, kind, plan}; with a kind, by the planner, which makes it. Else {"lost"} or {"cancelled"}. One whose moment is past, since all of it
-- was over, gets a new one: somebody tries again what failed, and what is read now would not fit what was read then.
local unit, fence, kind = ARGV[2], ARGV[3], ARGV[4]
local rec, job, n = load(unit)
regain(unit, job, n, rec, fence)
if not holds(rec, fence) then return {'lost'} end
if cancelled(job) then return {'cancelled'} end
local key = picture(job, rec.i)
local node = ARGV[5]
if not rec.pc then
  if kind == '' then return {'lost'} end
  redis.call('HSET', key, 's', kind == 'none' and 'none' or 'wanted', 'k', kind, 'g', 1, 'n', node, 'c', ARGV[6], 'u', ARGV[7],
    'most', ARGV[8], 'tr', 0, 'rf', 0, 'pu', n, 'op', 1, 'bad', 0)
  redis.call('SADD', jobkey(job, 'pictures'), rec.i)
  rec.pc = 1
  save(job, n, rec)
  if kind == 'held' then
    redis.call('ZADD', P .. 'pictures', NOW, job .. '.' .. rec.i)
    poke(node)
  end
elseif redis.call('HGET', key, 's') == 'over' then
  anew(job, rec.i, 'its snapshot is past', node)
  if not holds(load(unit), fence) then return {'lost'} end
end
local is = redis.call('HMGET', key, 's', 'g', 'id', 'er', 'ec', 'k', 'plan')
for at = 3, 7 do is[at] = is[at] or '' end
if kind == '' then is[7] = '' end
return is
