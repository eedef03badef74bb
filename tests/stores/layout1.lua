-- Commits to one entity: all of it or nothing, because a script runs alone.
--
-- KEYS: the entity, the last version of the store.
-- ARGV: expected version, kind (j, b, or - to delete), value.
-- Answers with the new version, 0 after a delete, or - and the version found.
--
-- Versions are compared as text. As numbers of Lua they are exact up to 2^53, microseconds of three centuries.
local head = redis.call('GETRANGE', KEYS[1], 0, 31)
local found = '0'
if head ~= '' then
  found = string.match(head, '^[jb](%d+) ')
  if not found then
    return redis.error_reply('CORRUPT a value has no head')
  end
end
if found ~= ARGV[1] then
  return '-' .. found
end
if ARGV[2] == '-' then
  redis.call('DEL', KEYS[1])
  return '0'
end
-- The next number, but never behind the clock: if the server lost its last writes in a crash, numbers that it
-- gave for them are not given again.
local time = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local version = string.format('%.0f', math.max(last + 1, tonumber(time[1]) * 1000000 + tonumber(time[2])))
redis.call('SET', KEYS[2], version)
redis.call('SET', KEYS[1], ARGV[2] .. version .. ' ' .. ARGV[3])
return version
