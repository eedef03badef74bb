-- What the scripts share: names, and how a thing and all that points to it come and go together. `layout.rs`
-- describes the keys.
--
-- A name made of several begins with the length of its first part, so that no two are alike.
local LAYOUT, VERSIONS, FUNCTIONS = 'executor:schema', 'executor:versions', 'executor:functions'
local ENDING_VALUES, ENDING_RECORDS = 'executor:expiring:values', 'executor:expiring:records'
local EVENTS = '1'

local function joined(first, second)
  return #first .. ':' .. first .. ':' .. second
end

-- The reverse of joined.
local function split(text)
  local length, at = string.match(text, '^(%d+):()')
  return string.sub(text, at, at + length - 1), string.sub(text, at + length + 1)
end

local function value_at(fn, key)
  return 'executor:state:' .. joined(fn, key)
end

local function keys_of(fn)
  return 'executor:keys:' .. fn
end

local function records_at(fn, room, key)
  return 'executor:records:' .. room .. ':' .. joined(fn, key)
end

local function subs_at(fn, room, key)
  return 'executor:subs:' .. room .. ':' .. joined(fn, key)
end

local function due_of(fn)
  return 'executor:due:' .. fn
end

local function record_name(room, key, sub)
  return room .. ':' .. joined(key, sub)
end

local CORRUPT = { err = 'CORRUPT something was not written by an executor' }

-- Version and expiry (or '') of the value at a key, '0' if there is none; nil if it is no value of ours.
local function head_of(at)
  local head = redis.call('GETRANGE', at, 0, 95)
  if head == '' then
    return '0', ''
  end
  local version, expires = string.match(head, '^[jbec](%d+),%d+,%d+,(%d*) ')
  if not version then
    version, expires = string.match(head, '^[jb](%d+) '), ''
  end
  return version, expires
end

-- The version of a record as it is kept, '0' if there is none; nil if it is no record of ours.
local function version_of(raw)
  if not raw then
    return '0'
  end
  return (string.match(raw, '^(%d+),%d*,%d* '))
end

-- The next number, but never behind the clock: if the server lost its last writes in a crash, numbers that it
-- gave for them are not given again.
local function next_version()
  local time = redis.call('TIME')
  local last = tonumber(redis.call('HGET', VERSIONS, 'last') or '0')
  local version = string.format('%.0f', math.max(last + 1, tonumber(time[1]) * 1000000 + tonumber(time[2])))
  redis.call('HSET', VERSIONS, 'last', version)
  return version
end

-- A function that has nothing any more is forgotten.
local function count(fn, change)
  if change ~= 0 and redis.call('HINCRBY', FUNCTIONS, fn, change) <= 0 then
    redis.call('HDEL', FUNCTIONS, fn)
  end
end

-- The rest answer how many things more the function has.

local function put_value(fn, key, was_to_expire, expires, bytes)
  local new = redis.call('ZADD', keys_of(fn), 0, key)
  if expires ~= '' then
    redis.call('ZADD', ENDING_VALUES, expires, joined(fn, key))
  elseif was_to_expire ~= '' then
    redis.call('ZREM', ENDING_VALUES, joined(fn, key))
  end
  redis.call('SET', value_at(fn, key), bytes)
  return new
end

local function remove_value(fn, key, was_to_expire)
  redis.call('DEL', value_at(fn, key))
  if was_to_expire ~= '' then
    redis.call('ZREM', ENDING_VALUES, joined(fn, key))
  end
  return -redis.call('ZREM', keys_of(fn), key)
end

local function forget_times(fn, room, key, sub, raw)
  local due, expires = string.match(raw, '^%d+,(%d*),(%d*) ')
  if due ~= '' then
    redis.call('ZREM', due_of(fn), record_name(room, key, sub))
  end
  if expires ~= '' then
    redis.call('ZREM', ENDING_RECORDS, joined(fn, record_name(room, key, sub)))
  end
end

local function put_record(fn, room, key, sub, version, bytes, due, expires)
  local at = records_at(fn, room, key)
  local raw = redis.call('HGET', at, sub)
  if raw then
    forget_times(fn, room, key, sub, raw)
  else
    redis.call('ZADD', subs_at(fn, room, key), 0, sub)
  end
  if due ~= '' then
    redis.call('ZADD', due_of(fn), due, record_name(room, key, sub))
  end
  if expires ~= '' then
    redis.call('ZADD', ENDING_RECORDS, expires, joined(fn, record_name(room, key, sub)))
  end
  return redis.call('HSET', at, sub, version .. ',' .. due .. ',' .. expires .. ' ' .. bytes)
end

local function remove_record(fn, room, key, sub)
  local at = records_at(fn, room, key)
  local raw = redis.call('HGET', at, sub)
  if not raw then
    return 0
  end
  forget_times(fn, room, key, sub, raw)
  redis.call('ZREM', subs_at(fn, room, key), sub)
  return -redis.call('HDEL', at, sub)
end

local function clear_records(fn, room, key)
  local at, subs = records_at(fn, room, key), subs_at(fn, room, key)
  local removed = 0
  for _, sub in ipairs(redis.call('ZRANGE', subs, 0, -1)) do
    local raw = redis.call('HGET', at, sub)
    if raw then
      forget_times(fn, room, key, sub, raw)
      removed = removed + 1
    end
  end
  redis.call('DEL', at, subs)
  return -removed
end

