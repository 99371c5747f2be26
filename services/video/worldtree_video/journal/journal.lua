-- One session's journal: every operation in one step that nobody else sees half of.
-- meta (hash): head, owner, epoch, lease (ms), snapshot, request, request_count, closed
-- steps (list): one entry for each generated chunk. frames (list): the pixels of the last so many of them.
-- Answers: {"OK", ...}, {"LOST", owner, epoch} (somebody else's), {"BEHIND", length} (write it anew),
-- {"MOVED", owner} and {"NONE"} (adopt only).
local op, prefix, replica, session, epoch, grace_ms = unpack(ARGV, 1, 6)
epoch, grace_ms = tonumber(epoch), tonumber(grace_ms)
local args = {unpack(ARGV, 7, 16)} -- of a fixed number; lists of entries are read from ARGV itself

local FRAMES_BYTES_MAX = 8388608 -- as in entries.py

local function key(name, kind) return prefix .. name .. ':' .. kind end
local function set_of(owner) return prefix .. 'owner:' .. owner end
local meta, steps, frames = key(session, 'meta'), key(session, 'steps'), key(session, 'frames')

local function live(name, lease_ms)
    redis.call('HSET', key(name, 'meta'), 'lease', lease_ms)
    local ends_ms = lease_ms + grace_ms
    for _, kind in ipairs({'meta', 'steps', 'frames'}) do redis.call('PEXPIREAT', key(name, kind), ends_ms) end
    -- the replica's list of sessions lives as long as its longest lease
    redis.call('SADD', set_of(replica), name)
    if redis.call('PEXPIRETIME', set_of(replica)) < ends_ms then redis.call('PEXPIREAT', set_of(replica), ends_ms) end
end

-- nil: ours; else what to answer
local function fence()
    local owner, held, closed = unpack(redis.call('HMGET', meta, 'owner', 'epoch', 'closed'))
    if not owner then return {'BEHIND', 0} end
    if owner ~= replica or tonumber(held) ~= epoch then return {'LOST', owner, held} end
    if closed then return {'LOST', '', held} end
end

local function push(list, first, last)
    for from = first, last, 1000 do -- unpack has a limit
        redis.call('RPUSH', list, unpack(ARGV, from, math.min(from + 999, last)))
    end
end

local function cut(length)
    local gone = redis.call('LLEN', steps) - length
    if gone <= 0 then return end
    local kept = redis.call('LLEN', frames) - gone
    if length == 0 then redis.call('DEL', steps) else redis.call('LTRIM', steps, 0, length - 1) end
    if kept <= 0 then redis.call('DEL', frames) else redis.call('LTRIM', frames, 0, kept - 1) end
    if tonumber(redis.call('HGET', meta, 'snapshot')) > length then redis.call('HSET', meta, 'snapshot', length) end
    redis.call('HSET', meta, 'request', '', 'request_count', 0)
end

if op == 'create' then -- head, lease, snapshot, request, request_count, step count; steps, frames
    local owner, held = unpack(redis.call('HMGET', meta, 'owner', 'epoch'))
    if owner and (tonumber(held) > epoch or (tonumber(held) == epoch and owner ~= replica)) then
        return {'LOST', owner, held}
    end
    if owner and owner ~= replica and owner ~= '' then redis.call('SREM', set_of(owner), session) end
    redis.call('DEL', meta, steps, frames)
    redis.call('HSET', meta, 'head', args[1], 'owner', replica, 'epoch', epoch, 'snapshot', args[3],
        'request', args[4], 'request_count', args[5])
    local split = 12 + tonumber(args[6])
    push(steps, 13, split)
    push(frames, split + 1, #ARGV)
    live(session, tonumber(args[2]))
    return {'OK'}
elseif op == 'adopt' then -- dead
    local owner, held, closed, lease = unpack(redis.call('HMGET', meta, 'owner', 'epoch', 'closed', 'lease'))
    if not owner or closed then return {'NONE'} end
    if owner ~= '' and owner ~= replica and owner ~= args[1] then return {'MOVED', owner} end
    if owner ~= '' then redis.call('SREM', set_of(owner), session) end
    held = tonumber(held) + 1
    redis.call('HSET', meta, 'owner', replica, 'epoch', held)
    live(session, tonumber(lease))
    local read = redis.call('HMGET', meta, 'head', 'snapshot', 'request', 'request_count')
    return {'OK', held, lease, read[1], read[2], read[3], read[4],
        redis.call('LRANGE', steps, 0, -1), redis.call('LRANGE', frames, 0, -1)}
elseif op == 'owned' then
    local owned = {}
    for _, name in ipairs(redis.call('SMEMBERS', set_of(replica))) do
        local owner, closed = unpack(redis.call('HMGET', key(name, 'meta'), 'owner', 'closed'))
        if owner == replica and not closed then table.insert(owned, name)
        else redis.call('SREM', set_of(replica), name) end
    end
    return {'OK', owned}
elseif op == 'missing' then -- names, each followed by the epoch that it should have
    local found = {}
    for place = 7, #ARGV, 2 do
        local owner, held, closed = unpack(redis.call('HMGET', key(ARGV[place], 'meta'), 'owner', 'epoch', 'closed'))
        if owner ~= replica or held ~= ARGV[place + 1] or closed then table.insert(found, ARGV[place]) end
    end
    return {'OK', found}
end

local refused = fence()
if refused then return refused end

if op == 'append' then -- first, lease, request, count; steps, frames
    local first, count = tonumber(args[1]), tonumber(args[4])
    local length = redis.call('LLEN', steps)
    if length < first then return {'BEHIND', length} end
    cut(first)
    push(steps, 11, 10 + count)
    push(frames, 11 + count, 10 + 2 * count)
    if count > 0 then -- so many of the last one's size
        local most = math.max(1, math.floor(FRAMES_BYTES_MAX / math.max(1, #ARGV[10 + 2 * count])))
        redis.call('LTRIM', frames, -most, -1)
    end
    redis.call('HSET', meta, 'request', args[3], 'request_count', args[3] == '' and 0 or count)
    live(session, tonumber(args[2]))
elseif op == 'rewind' then -- length
    local length = redis.call('LLEN', steps)
    if length < tonumber(args[1]) then return {'BEHIND', length} end
    cut(tonumber(args[1]))
elseif op == 'mark' then -- length
    local length = redis.call('LLEN', steps)
    if length < tonumber(args[1]) then return {'BEHIND', length} end
    local kept = length - tonumber(args[1])
    if kept == 0 then redis.call('DEL', frames) else redis.call('LTRIM', frames, -kept, -1) end
    redis.call('HSET', meta, 'snapshot', args[1])
elseif op == 'fork' then -- child, head, length, lease, the child's epoch
    local child, length = args[1], tonumber(args[3])
    local parent_length = redis.call('LLEN', steps)
    if parent_length < length then return {'BEHIND', parent_length} end
    local snapshot = math.min(tonumber(redis.call('HGET', meta, 'snapshot')), length)
    redis.call('DEL', key(child, 'meta'), key(child, 'steps'), key(child, 'frames'))
    redis.call('HSET', key(child, 'meta'), 'head', args[2], 'owner', replica, 'epoch', args[5],
        'snapshot', snapshot, 'request', '', 'request_count', 0)
    if length > 0 then
        redis.call('COPY', steps, key(child, 'steps'))
        redis.call('LTRIM', key(child, 'steps'), 0, length - 1)
        local kept = redis.call('LLEN', frames) - (parent_length - length)
        if kept > 0 then
            redis.call('COPY', frames, key(child, 'frames'))
            redis.call('LTRIM', key(child, 'frames'), 0, kept - 1)
        end
    end
    live(child, tonumber(args[4]))
elseif op == 'touch' then -- lease
    live(session, tonumber(args[1]))
elseif op == 'release' then
    redis.call('HSET', meta, 'owner', '')
    redis.call('SREM', set_of(replica), session)
elseif op == 'close' then
    redis.call('SREM', set_of(replica), session)
    redis.call('DEL', steps, frames)
    -- one that was adopted leaves a mark for a while: an owner of old that wakes up must not write it anew
    if epoch > 1 then redis.call('HSET', meta, 'closed', 1) redis.call('HDEL', meta, 'head') else redis.call('DEL', meta) end
else
    return redis.error_reply('ERR no operation ' .. op)
end
return {'OK'}
