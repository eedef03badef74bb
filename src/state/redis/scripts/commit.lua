-- Commits in one function: all of it or nothing, because a script runs alone and looks before it writes.
--
-- ARGV: function, key; of the value: the version expected ('': it plays no part), what becomes of it (=: it is
-- kept, -: deleted, or its kind), its bytes, schema, expiry ('': none), and the time; then for each record room,
-- key, sub, the version expected ('': any), what becomes of it (p: put, -: deleted, c: it and its neighbours
-- cleared), bytes, due ('': never), expiry.
-- Answers with the version of what was put, 0 if nothing was; or - and the version of the value found; or !, the
-- index of a record, a colon and the version found.
--
-- Versions are compared as text. As numbers of Lua they are exact up to 2^53, microseconds of three centuries.
local fn, key, expected, action, bytes, schema, expires, at = unpack(ARGV, 1, 8)
local FIRST, EACH = 9, 8

local was_to_expire = ''
if expected ~= '' then
  local found, ends = head_of(value_at(fn, key))
  if not found then
    return CORRUPT
  elseif found ~= expected then
    return '-' .. found
  end
  was_to_expire = ends
end
for first = FIRST, #ARGV, EACH do
  local room, record_key, sub, wanted = unpack(ARGV, first, first + 3)
  if wanted ~= '' then
    local found = version_of(redis.call('HGET', records_at(fn, room, record_key), sub))
    if not found then
      return CORRUPT
    elseif found ~= wanted then
      return '!' .. (first - FIRST) / EACH .. ':' .. found
    end
  end
end

-- One number for all of it.
local version
local function number()
  version = version or next_version()
  return version
end

local change = 0
if expected == '' or action == '=' then
  -- Nothing becomes of the value.
elseif action ~= '-' then
  local head = action .. number() .. ',' .. at .. ',' .. schema .. ',' .. expires .. ' '
  change = change + put_value(fn, key, was_to_expire, expires, head .. bytes)
else
  -- Also where there is none: the index of keys may know of one that a release of layout 1 deleted.
  change = change + remove_value(fn, key, was_to_expire)
end
for first = FIRST, #ARGV, EACH do
  local room, record_key, sub, _, what, content, due, ends = unpack(ARGV, first, first + 7)
  if what == 'p' then
    change = change + put_record(fn, room, record_key, sub, number(), content, due, ends)
  elseif what == '-' then
    change = change + remove_record(fn, room, record_key, sub)
  else
    change = change + clear_records(fn, room, record_key)
  end
end
count(fn, change)
return version or '0'
