-- anew(job, source, generation, why, node): the moment of that generation is lost, see anew() in pictures.lua. Whoever is first to say so is heard.
-- Returns {"ok", "wanted" or "refused" (it was the last one that may be), queue to ring for, …} or {"old"}.
local job, i = ARGV[2], ARGV[3]
local key = picture(job, i)
local is = redis.call('HMGET', key, 'g', 's', 'n')
if is[1] ~= ARGV[4] or is[2] ~= 'held' then return {'old'} end
anew(job, i, ARGV[5], ARGV[6] == '*' and is[3] or ARGV[6])
local answer = {'ok', redis.call('HGET', key, 's')}
for _, n in ipairs(redis.call('LRANGE', P .. 'pictured:' .. job .. '.' .. i, 0, -1)) do
  local rec = load(job .. '.' .. n)
  if rec and rec.s == 'due' and rec.nb == 0 then answer[#answer + 1] = rec.q end
end
return answer
