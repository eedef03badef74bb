-- The records of some functions that are due first.
--
-- ARGV: how many at most, the functions.
-- Answers with function, room, key, sub and record in turns.
local limit = tonumber(ARGV[1])
local all = {}
for index = 2, limit > 0 and #ARGV or 0 do
  local times = redis.call('ZRANGE', due_of(ARGV[index]), 0, limit - 1, 'WITHSCORES')
  for at = 1, #times, 2 do
    all[#all + 1] = { fn = ARGV[index], name = times[at], due = tonumber(times[at + 1]), at = #all }
  end
end
table.sort(all, function(one, other)
  if one.due ~= other.due then
    return one.due < other.due
  end
  return one.at < other.at
end)
local answer = {}
for index = 1, math.min(limit, #all) do
  local fn = all[index].fn
  local room, rest = string.match(all[index].name, '^(%d+):(.*)$')
  local key, sub = split(rest)
  local raw = redis.call('HGET', records_at(fn, room, key), sub)
  if raw then
    for _, part in ipairs({ fn, room, key, sub, raw }) do
      answer[#answer + 1] = part
    end
  end
end
return answer
