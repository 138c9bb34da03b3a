-- offer(job, source, generation, worker, moment, lease_ms): the moment that a picture is to be read at. With a worker, which holds it from
-- now on and has said that it would; without one, it is recognised, and the first that is offered counts. {"ok", queue to ring for, …} or {"old"}.
local job, i, worker, moment = ARGV[2], ARGV[3], ARGV[5], ARGV[6]
local key = picture(job, i)
local is = redis.call('HMGET', key, 'g', 's', 'w', 'id')
if is[1] ~= ARGV[4] then return {'old'} end
if is[2] == 'held' and is[4] == moment then return {'ok'} end
if is[2] ~= (worker == '' and 'wanted' or 'opening') or (is[3] or '') ~= worker then return {'old'} end
redis.call('HSET', key, 's', 'held', 'id', moment, 'rf', 0)
if worker ~= '' then redis.call('ZADD', P .. 'pictures', NOW + tonumber(ARGV[7]), job .. '.' .. i) end
local queues = wake_picture(job, i)
table.insert(queues, 1, 'ok')
return queues
