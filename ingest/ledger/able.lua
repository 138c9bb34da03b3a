-- able(worker): a message that went through the worker's queue was answered by a process of its pool, just now.
redis.call('SET', P .. 'able:' .. ARGV[2], NOW, 'PX', 86400000)
return NOW
