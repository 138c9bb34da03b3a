-- wanted(key, …): how many units of jobs that were not cancelled wait for one of these sources.
local n = 0
for at = 2, #ARGV do
  for _, unit in ipairs(redis.call('SMEMBERS', P .. 'waiting:' .. ARGV[at])) do
    local job = split(unit)
    if job and redis.call('EXISTS', jobkey(job)) == 1 and not cancelled(job) then n = n + 1 end
  end
end
return n
