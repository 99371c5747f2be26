-- One step of the generic cell rate algorithm for each key, all of them or none: rate.py is the same in Python.
-- KEYS: one a rate. ARGV: "1" where the units are used up already, whatever is left; then for each key: microseconds
-- that a unit takes, microseconds of the burst, units.
-- Answers the number of the key that went too far, and the microseconds until it would not; 0 and 0: none did.
local now = redis.call("TIME")
now = now[1] * 1000000 + now[2]
local owed = ARGV[1] == "1"
local after, number, longest = {}, 0, 0
for i, key in ipairs(KEYS) do
  local unit, burst, units = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  after[i] = math.max(tonumber(redis.call("GET", key) or 0), now) + unit * units
  local wait = math.ceil(after[i] - burst - now)
  if wait > longest then
    number, longest = i, wait
  end
end
if number == 0 or owed then
  for i, key in ipairs(KEYS) do
    if after[i] > now then
      redis.call("SET", key, string.format("%.0f", after[i]), "PX", math.ceil((after[i] - now) / 1000))
    end
  end
end
return {number, longest}
