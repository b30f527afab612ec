-- KEYS: lock, run hash.
-- ARGV: value, its identity or '', mirror field, last_modified or '', channel or '', message.
-- Returns 1 released, 0 somebody else's, -1 nobody's.
local stored = redis.call('GET', KEYS[1])
local identity = ARGV[2]
local result = -1
if stored then
  result = 0
  if stored == ARGV[1] or (identity ~= '' and string.sub(stored, 1, #identity) == identity) then
    redis.call('DEL', KEYS[1])
    result = 1
  end
end
if result ~= 0 then
  redis.call('HSET', KEYS[2], ARGV[3], 'false')
end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[2], 'last_modified', ARGV[4])
end
if ARGV[5] ~= '' then
  redis.call('PUBLISH', ARGV[5], ARGV[6])
end
return result
