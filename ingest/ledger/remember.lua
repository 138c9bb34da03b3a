-- remember(unit, fence, generation, plan, cursor's key, value it begins after, last value): what was planned at a picture's moment. A planner that
-- goes on after one that died goes on with the same partitions: other bounds would leave rows out. "ok", "lost", or "old": plan again.
local unit, fence, plan, cursor = ARGV[2], ARGV[3], ARGV[5], ARGV[6]
local rec, job = load(unit)
if not holds(rec, fence) then return 'lost' end
local key = picture(job, rec.i)
if redis.call('HGET', key, 'g') ~= ARGV[4] then return 'old' end
redis.call('HSET', key, 'plan', plan)
if cursor ~= '' then redis.call('HSET', key, 'ck', cursor, 'cf', ARGV[7], 'cv', ARGV[8]) end
return 'ok'
