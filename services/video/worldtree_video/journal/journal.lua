-- One session's journal: every operation in one step that nobody else sees half of.
-- meta (hash): head, owner, epoch, lease (ms), snapshot, request, request_count, closed, written (number of the last
-- write; the owner counts them, and each epoch begins anew)
-- steps (list): one entry for each generated chunk. frames (list): the pixels of the last so many of them.
-- Answers: {"OK", ...}, {"LOST", owner, epoch} (somebody else's), {"BEHIND", length} (write it anew),
-- {"MOVED", owner} and {"NONE"} (adopt only). FRAMES_BYTES_MAX is put before it by whoever loads it.
local prefix = KEYS[1] -- all keys begin with it, and in a cluster are in its slot
local op, replica, session, epoch, grace_ms, number = unpack(ARGV, 1, 6)
epoch, grace_ms, number = tonumber(epoch), tonumber(grace_ms), tonumber(number)
local args = {unpack(ARGV, 7, 16)} -- of a fixed number; lists of entries are read from ARGV itself

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

-- What to answer a write that came again, or so late that a newer one was done before it; nil: it is the newest
local function late(written)
    if number == tonumber(written or 0) then return {'OK'} end
    if number < tonumber(written or 0) then return {'BEHIND', 0} end
end

-- nil: ours; else what to answer
local function fence()
    local owner, held, closed, written = unpack(redis.call('HMGET', meta, 'owner', 'epoch', 'closed', 'written'))
    if not owner then return op ~= 'close' and {'BEHIND', 0} or nil end
    if tonumber(held) < epoch then return {'BEHIND', 0} end -- all was lost, and an owner of old came before us
    if owner ~= replica or tonumber(held) > epoch then return {'LOST', owner, held} end
    if late(written) then return late(written) end
    if closed then return op == 'close' and {'OK'} or {'LOST', '', held} end
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
    local owner, held, written = unpack(redis.call('HMGET', meta, 'owner', 'epoch', 'written'))
    if owner and (tonumber(held) > epoch or (tonumber(held) == epoch and owner ~= replica)) then
        return {'LOST', owner, held}
    end
    if owner and tonumber(held) == epoch and late(written) then return late(written) end
    if owner and owner ~= replica and owner ~= '' then redis.call('SREM', set_of(owner), session) end
    redis.call('DEL', meta, steps, frames)
    redis.call('HSET', meta, 'head', args[1], 'owner', replica, 'epoch', epoch, 'snapshot', args[3],
        'request', args[4], 'request_count', args[5], 'written', number)
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
    redis.call('HSET', meta, 'owner', replica, 'epoch', held, 'written', 0)
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
local length = redis.call('LLEN', steps)
local needed = ({append = args[1], rewind = args[1], mark = args[1], fork = args[3]})[op]
if length < tonumber(needed or 0) then return {'BEHIND', length} end
redis.call('HSET', meta, 'written', number)

if op == 'append' then -- first, lease, request, count; steps, frames
    local first, count = tonumber(args[1]), tonumber(args[4])
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
    cut(tonumber(args[1]))
elseif op == 'mark' then -- length
    local kept = length - tonumber(args[1])
    if kept == 0 then redis.call('DEL', frames) else redis.call('LTRIM', frames, -kept, -1) end
    redis.call('HSET', meta, 'snapshot', args[1])
elseif op == 'fork' then -- child, head, length, lease, the child's epoch
    local child, forked = args[1], tonumber(args[3])
    local owner, held, written = unpack(redis.call('HMGET', key(child, 'meta'), 'owner', 'epoch', 'written'))
    local older = not owner or tonumber(held) < tonumber(args[5])
    if not older and (owner ~= replica or tonumber(held) > tonumber(args[5]) or late(written)) then
        return {'OK'} -- the child has gone on without us: whoever writes it next is told what it is now
    end
    local snapshot = math.min(tonumber(redis.call('HGET', meta, 'snapshot')), forked)
    redis.call('DEL', key(child, 'meta'), key(child, 'steps'), key(child, 'frames'))
    redis.call('HSET', key(child, 'meta'), 'head', args[2], 'owner', replica, 'epoch', args[5],
        'snapshot', snapshot, 'request', '', 'request_count', 0, 'written', number)
    if forked > 0 then
        redis.call('COPY', steps, key(child, 'steps'))
        redis.call('LTRIM', key(child, 'steps'), 0, forked - 1)
        local kept = redis.call('LLEN', frames) - (length - forked)
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
    -- A mark stays for a while: a write of ours that comes late must not bring it back. Of one that was adopted it stays
    -- as long as the lease: an owner of old that wakes up must not write it anew.
    redis.call('HSET', meta, 'owner', replica, 'epoch', epoch, 'closed', 1)
    redis.call('HDEL', meta, 'head')
    if epoch == 1 or redis.call('PTTL', meta) < 0 then redis.call('PEXPIRE', meta, grace_ms) end
else
    return redis.error_reply('ERR no operation ' .. op)
end
return {'OK'}
