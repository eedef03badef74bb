-- Removes what expired.
--
-- ARGV: now, how many values and how many records at most.
-- Answers with how many of both there were.
local now, limit = ARGV[1], ARGV[2]
local swept = 0
for _, name in ipairs(redis.call('ZRANGEBYSCORE', ENDING_VALUES, '-inf', now, 'LIMIT', 0, limit)) do
  local fn, key = split(name)
  count(fn, remove_value(fn, key, 'at some time') + clear_records(fn, EVENTS, key))
  swept = swept + 1
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', ENDING_RECORDS, '-inf', now, 'LIMIT', 0, limit)) do
  local fn, record = split(name)
  local room, rest = string.match(record, '^(%d+):(.*)$')
  local key, sub = split(rest)
  count(fn, remove_record(fn, room, key, sub))
  redis.call('ZREM', ENDING_RECORDS, name)
  swept = swept + 1
end
return swept
