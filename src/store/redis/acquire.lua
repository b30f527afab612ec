-- KEYS: lock, run hash, fence.
-- ARGV: value, TTL in ms, mirror field, then values of ours whose requests were never answered.
-- Returns {0, stored value} busy, {1, false} held, {2, false} fenced.
if redis.call('EXISTS', KEYS[3]) == 1 then
  return {2, false}
end
local stored = redis.call('GET', KEYS[1])
if stored then
  local ours = stored == ARGV[1]
  for i = 4, #ARGV do
    ours = ours or stored == ARGV[i]
  end
  if not ours then
    return {0, stored}
  end
end
-- the mirror first: should it fail, no lock is left behind
redis.call('HSET', KEYS[2], ARGV[3], 'true')
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {1, false}
