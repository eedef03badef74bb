-- Prepares the database, or brings it up to date.
--
-- ARGV: the layout of this release.
-- Answers with the layout there is now.
--
-- Whoever may not do what a commit does is to learn it here, not in the middle of one.
local trial = 'executor:trial'
for _, attempt in ipairs({
  { 'SET', trial, '' }, { 'GETRANGE', trial, 0, 0 }, { 'STRLEN', trial }, { 'DEL', trial },
  { 'ZADD', trial, 0, '' }, { 'ZRANGE', trial, 0, 0 }, { 'ZRANGEBYLEX', trial, '-', '+' },
  { 'ZRANGEBYSCORE', trial, 0, 0 }, { 'ZCARD', trial }, { 'ZREM', trial, '' },
  { 'HSET', trial, 'n', 0 }, { 'HINCRBY', trial, 'n', 1 }, { 'HGET', trial, 'n' }, { 'HKEYS', trial },
  { 'HDEL', trial, 'n' }, { 'TIME' }, { 'SCAN', 0, 'COUNT', 1 },
}) do
  redis.call(unpack(attempt))
end

local layout = redis.call('GET', LAYOUT)
if not layout then
  redis.call('SET', LAYOUT, ARGV[1])
elseif layout == '1' then
  -- Values stay as they are: their heads say less, and are still read. What is new is the index of their keys.
  -- The last version moves to where an executor of the old release, which may still be connected, does not find
  -- it: its commits fail from now on, before they write.
  local last = redis.call('GET', VERSIONS)
  redis.call('DEL', VERSIONS)
  redis.call('HSET', VERSIONS, 'last', last or '0')
  local cursor = '0'
  repeat
    local page = redis.call('SCAN', cursor, 'MATCH', 'executor:state:*', 'COUNT', 500)
    cursor = page[1]
    local found = {}
    for _, name in ipairs(page[2]) do
      local rest = string.match(name, '^executor:state:(%d+:.*)$')
      if rest then
        local fn, key = split(rest)
        local members = found[fn] or {}
        members[#members + 1], members[#members + 2] = 0, key
        found[fn] = members
      end
    end
    for fn, members in pairs(found) do
      count(fn, redis.call('ZADD', keys_of(fn), unpack(members)))
    end
  until cursor == '0'
  redis.call('SET', LAYOUT, '2')
end
return redis.call('GET', LAYOUT)
