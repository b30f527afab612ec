-- KEYS: lock, run hash. ARGV: mirror field. Returns the stored value or nil, and its TTL in ms or less than 0.
local stored = redis.call('GET', KEYS[1])
if not stored and redis.pcall('HGET', KEYS[2], ARGV[1]) == 'true' then
  -- a replica refuses; then somebody else repairs it
  redis.pcall('HSET', KEYS[2], ARGV[1], 'false')
end
return {stored, redis.call('PTTL', KEYS[1])}
