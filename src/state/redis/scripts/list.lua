-- Entities of a function in the order of their keys.
--
-- ARGV: function, the first and the last key as ZRANGEBYLEX has them, how many at most.
-- Answers with key, head and bytes (the head's included) in turns.
local fn, first, last, limit = unpack(ARGV)
local listed = {}
for _, key in ipairs(redis.call('ZRANGEBYLEX', keys_of(fn), first, last, 'LIMIT', 0, limit)) do
  local at = value_at(fn, key)
  local head = redis.call('GETRANGE', at, 0, 95)
  if head ~= '' then
    listed[#listed + 1], listed[#listed + 2], listed[#listed + 3] = key, head, redis.call('STRLEN', at)
  end
end
return listed
