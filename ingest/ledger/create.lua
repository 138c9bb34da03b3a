-- create(id, key, keep_ms, reply, options), see create_job.
return create_job(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
