-- add(job, kind, start, upto, spec, facts, …), see submit_units.
return submit_units(ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], 6)
