-- evict(store, token, seq, freed, ttl_ms, dry, patient, version, dry_ms, later): hold the right to evict from a store for another ttl_ms (0: give it back), and say
-- that step `seq` freed so many bytes; dry: why no more could be freed, as of that version of the holders, which is true for dry_ms; later: to those who can wait, see space.lua. It only spares the others the same work: what may go is asked of
-- the jobs, file by file. Returns {"ok", holders, add, comers}, {"busy"}, or {"young", …}: the ledger was
-- wiped (patient 1: there were jobs here before) or away, so that readers must be heard first.
local store, token, seq, freed, ttl = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local key, lock = space(store), P .. 'evicting:' .. store
local holder, till = string.match(redis.call('GET', lock) or '', '^(%S+) (%d+)$')
if holder and holder ~= token and tonumber(till) > NOW then return {'busy'} end
if redis.call('HSETNX', key, 'since', NOW) == 1 and ARGV[8] == '1' then redis.call('HSET', key, 'young', NOW + 30000) end
local version, comers = redis.call('GET', P .. 'holders') or '', redis.call('GET', P .. 'comers') or ''
if ttl == 0 then redis.call('DEL', lock) else redis.call('SET', lock, token .. ' ' .. string.format('%.0f', NOW + ttl), 'PX', ttl) end
if freed > 0 and redis.call('HGET', key, 'step') ~= token .. ' ' .. seq then
  redis.call('HSET', key, 'step', token .. ' ' .. seq)
  local used = tonumber(redis.call('HGET', key, 'used') or '-1')
  if used >= 0 then add_to(key, 'used', -math.min(used, freed)) end
end
if ARGV[7] ~= '' and ARGV[11] == '1' then
  redis.call('HSET', key, 'later', ARGV[7], 'later_till', NOW + tonumber(ARGV[10]), 'later_v', redis.call('GET', P .. 'leavers') or '')
elseif ARGV[7] ~= '' then
  redis.call('HSET', key, 'dry', ARGV[7], 'dry_till', NOW + tonumber(ARGV[10]), 'dry_v', ARGV[9])
end
if ttl > 0 and ARGV[8] ~= '' then
  local last = redis.call('GET', P .. 'tick')
  local away = last and NOW - tonumber(last) > 6000
  if away or tonumber(redis.call('GET', P .. 'deaf') or '0') > NOW or tonumber(redis.call('HGET', key, 'young') or '0') > NOW then
    return {'young', version, redis.call('HGET', key, 'add') or '0', comers}
  end
end
return {'ok', version, redis.call('HGET', key, 'add') or '0', comers}
