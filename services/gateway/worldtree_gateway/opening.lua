-- Who is opening sessions of a tenant, in the order in which they came: openings.py is the same in Python.
-- KEYS: the tenant's. ARGV: "before" or "leave", who with ":" and how many sessions, milliseconds after which nobody
-- waits for one that does not leave. "before" answers how many sessions those who came earlier are opening.
local time = redis.call("TIME")
local now = time[1] * 1000000 + time[2]
local key, who, life = KEYS[1], ARGV[2], tonumber(ARGV[3])
redis.call("ZREMRANGEBYSCORE", key, "-inf", now - 1000 * life)
if ARGV[1] == "leave" then
  redis.call("ZREM", key, who)
  return 0
end
redis.call("ZADD", key, "NX", now, who)
redis.call("PEXPIRE", key, life)
local before = 0
for _, each in ipairs(redis.call("ZRANGE", key, 0, -1)) do
  if each == who then
    break
  end
  before = before + tonumber(string.match(each, ":(%d+)$"))
end
return before
