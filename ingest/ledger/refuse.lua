-- refuse(job, source, generation, worker, final, delay_ms, error, why): the worker that opens a picture's moment cannot have it: for good, or not
-- before delay_ms are over. {"ok", queue to ring for, …} or {"old"}.
local job, i, worker, final = ARGV[2], ARGV[3], ARGV[5], ARGV[6] == '1'
local key = picture(job, i)
local is = redis.call('HMGET', key, 'g', 's', 'w')
if is[1] ~= ARGV[4] or is[2] ~= 'opening' or is[3] ~= worker then return {'old'} end
let_go(job, i)
redis.call('HSET', key, 'ec', ARGV[8], 'er', ARGV[9], 's', final and 'refused' or 'wanted')
redis.call('HINCRBY', key, 'rf', 1)
local queues = {}
if final then
  queues = wake_picture(job, i)
else
  redis.call('ZADD', P .. 'pictures', NOW + tonumber(ARGV[7]), job .. '.' .. i)
  for _, n in ipairs(units_of(job, i)) do -- what they wait for, for whoever asks
    local rec = load(job .. '.' .. n)
    if rec and rec.s == 'due' then
      rec.er = ARGV[9]
      save(job, n, rec)
    end
  end
end
table.insert(queues, 1, 'ok')
return queues
