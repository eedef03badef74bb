-- Entities of a function in the order of their keys.
--
-- ARGV: function, the first and the last key as ZRANGEBYLEX has them, how many at most.
-- Answers with the key to go on after if there may be more (else nothing), and then with key, head and bytes (the
-- head's included) in turns.
--
-- The index may know of keys whose value is gone, so that few of those looked at may be there.
local fn, first, last, limit = unpack(ARGV)
limit = tonumber(limit)
local most = limit > 0 and math.max(limit, 100) or 0
local keys = redis.call('ZRANGEBYLEX', keys_of(fn), first, last, 'LIMIT', 0, most)
local answer, found = { false }, 0
for _, key in ipairs(keys) do
  if found == limit then
    return answer
  end
  local at = value_at(fn, key)
  local head = redis.call('GETRANGE', at, 0, 95)
  if head ~= '' then
    answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = key, head, redis.call('STRLEN', at)
    found = found + 1
  end
end
if found < limit and #keys == most then
  answer[1] = keys[#keys]
end
return answer
