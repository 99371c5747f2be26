-- One call for all gateways: who makes it, and what of it has come. KEYS: the lock, the recording of its holder; for
-- "retry" who comes after the one that has failed.
-- ARGV: what to do, the holder's token, milliseconds to live; for "add" and "fail" how many entries came before, and the next ones;
-- for "look" how many the reader has had, and how many it takes; for "claim" and "retry" milliseconds that a claim lives.
-- The token fences: what a holder that was thought dead still writes goes nowhere.
local lock, log = KEYS[1], KEYS[2]
local what, token, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
if what == "claim" then
  local holder = redis.call("GET", lock)
  if holder then
    return holder
  end
  redis.call("SET", lock, token, "PX", tonumber(ARGV[4]))
  return token
end
if what == "retry" then
  local last = KEYS[3] -- who makes the call that one has failed at, for all who waited for that one
  local holder = redis.call("GET", last) or redis.call("GET", lock)
  if not holder then
    holder = token
    redis.call("SET", lock, token, "PX", tonumber(ARGV[4]))
  end
  redis.call("SET", last, holder, "PX", ttl, "NX")
  return holder
end
if what == "look" then
  local had, last = tonumber(ARGV[4]), redis.call("LINDEX", log, -1)
  local failure = last and string.sub(last, 1, 1) == "f" and last -- an entry may be large: no other is sent twice
  local entries = redis.call("LRANGE", log, had, had + tonumber(ARGV[5]) - 1)
  return { redis.call("GET", lock) == token and 1 or 0, redis.call("LLEN", log), entries, failure }
end
if redis.call("GET", lock) ~= token then
  return 0
end
if what == "add" or what == "fail" then
  local before, count, length = tonumber(ARGV[4]), #ARGV - 4, redis.call("LLEN", log)
  if length == before then
    for i = 5, #ARGV do
      redis.call("RPUSH", log, ARGV[i])
    end
  elseif length ~= before + count then -- else they came already, and the answer was lost
    redis.call("DEL", lock, log) -- the recording was, or a part of it: whoever reads must not take the rest for all
    return 0
  end
  redis.call("PEXPIRE", log, ttl)
  if what == "fail" then
    redis.call("DEL", lock) -- those who wait read how it failed; who comes now makes a call of its own
  else
    redis.call("PEXPIRE", lock, ttl)
  end
elseif what == "drop" then
  redis.call("DEL", lock, log)
end
return 1
