-- Records of one key in order.
--
-- ARGV: function, room, key, the first sub, how many at most, after how many bytes no more.
-- Answers with sub and record in turns.
local fn, room, key, from, limit, room_left = unpack(ARGV)
local at, page, bytes = records_at(fn, room, key), {}, 0
for _, sub in ipairs(redis.call('ZRANGEBYLEX', subs_at(fn, room, key), '[' .. from, '+', 'LIMIT', 0, limit)) do
  if bytes >= tonumber(room_left) then
    break
  end
  local raw = redis.call('HGET', at, sub)
  if raw then
    page[#page + 1], page[#page + 2] = sub, raw
    bytes = bytes + #raw - (string.find(raw, ' ', 1, true) or 0)
  end
end
return page
