-- KEYS: lock. ARGV: value, its identity or '', new value, TTL in ms.
-- Returns 1 renewed, 0 not ours any more.
local stored = redis.call('GET', KEYS[1])
if not stored then
  return 0
end
local identity = ARGV[2]
if stored == ARGV[1] or (identity ~= '' and string.sub(stored, 1, #identity) == identity) then
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
  return 1
end
return 0
