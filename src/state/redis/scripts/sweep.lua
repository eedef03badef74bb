-- Removes what expired.
--
-- ARGV: now, how many values and how many records at most, and how many events of the values.
-- Answers with how many values and records there were.
local now, limit, events = ARGV[1], ARGV[2], tonumber(ARGV[3])

-- Removes at most so many of the events of a key. Says how many that were, and whether it was all.
local function remove_events(fn, key, most)
  local at, subs = records_at(fn, EVENTS, key), subs_at(fn, EVENTS, key)
  local found = redis.call('ZRANGE', subs, 0, most - 1)
  if redis.call('ZCARD', subs) == #found then
    return -clear_records(fn, EVENTS, key), true
  end
  local removed = 0
  for _, sub in ipairs(found) do
    removed = removed - remove_record(fn, EVENTS, key, sub)
    redis.call('ZREM', subs, sub)
  end
  return removed, false
end

-- From now on nobody takes it for a value, whatever their clock says, and nobody adds to a log that has lost its begin.
local function end_value(fn, key)
  local at = value_at(fn, key)
  local kind, written, schema = string.match(redis.call('GETRANGE', at, 0, 95), '^([jbec])%d+,(%d+),(%d+),%d* ')
  if kind then
    redis.call('SET', at, kind .. next_version() .. ',' .. written .. ',' .. schema .. ',0 ')
  end
  redis.call('ZADD', ENDING_VALUES, 0, joined(fn, key))
end

local swept = 0
for _, name in ipairs(redis.call('ZRANGEBYSCORE', ENDING_VALUES, '-inf', now, 'LIMIT', 0, limit)) do
  if events <= 0 then
    break
  end
  local fn, key = split(name)
  local removed, all = remove_events(fn, key, events)
  events = events - removed
  -- Also one that has not gone yet: whoever asked is to come again.
  swept = swept + 1
  if all then
    count(fn, remove_value(fn, key, 'at some time') - removed)
  else
    end_value(fn, key)
    count(fn, -removed)
    break
  end
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
