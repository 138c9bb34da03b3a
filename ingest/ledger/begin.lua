-- begin(id, keep_ms, reply, options, whole, kind, upto, spec, facts, …): a new job without a key, its first units and, where these are all
-- (`whole` is 1), its seal: a submitter that dies has made it with them, or not at all. Returns {answer as of add, epoch, created}.
local job, whole = ARGV[2], ARGV[6] == '1'
local made = create_job(job, '', ARGV[3], ARGV[4], ARGV[5])
local answer = submit_units(job, ARGV[7], 0, ARGV[8], 9)
if answer == 'ok' and whole and seal_job(job, '') == 'given up' then answer = 'given up' end
return {answer, made[4], made[5]}
