-- KEYS: entry, seal.
-- ARGV: new entry, new seal, expiry in seconds, and the entry that was seen, if there was one.
-- Returns whether the entry was still the one seen, and so was replaced.
if redis.call('GET', KEYS[1]) ~= (ARGV[4] or false) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
return 1
