-- seal(job, error), see seal_job.
return seal_job(ARGV[2], ARGV[3])
