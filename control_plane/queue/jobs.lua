-- One change of one job, or of a few, at a time; redis_store.py documents the keys, job.py the moves.
-- Above this stand MOVES, which comes from job.py, and the Policy as numbers, times in ms.
-- keys: base · args: verb, now in ms, the verb's arguments

local base, now  -- of the call that runs

local function key(kind, name) return base .. ':' .. kind .. ':' .. name end

local function load(id)
  local flat = redis.call('HGETALL', key('job', id))
  if #flat == 0 then return nil end
  local job = {attempt = '0', failures = '0', reclaims = '0'}
  for i = 1, #flat, 2 do job[flat[i]] = flat[i + 1] end
  return job
end

-- The job that an index names. One that somebody took away, as a server that evicts does, must
-- not keep the others waiting: its entry goes, too.
local function listed(id, index)
  local job = load(id)
  if not job then redis.call('ZREM', index, id) end
  return job
end

-- The job of a caller: another tenant's is as one that is not there; to '' every job is.
local function load_own(id, tenant)
  local job = load(id)
  if job and (tenant == '' or job.tenant == tenant) then return job end
  return nil
end

local function shown(id) return {id, redis.call('HGETALL', key('job', id))} end

local function set(id, job, fields)
  local flat = {}
  for name, value in pairs(fields) do
    job[name] = tostring(value)
    flat[#flat + 1] = name
    flat[#flat + 1] = job[name]
  end
  redis.call('HSET', key('job', id), unpack(flat))
end

local function count(model, state, by)
  local field = model .. '|' .. state
  if redis.call('HINCRBY', base .. ':counts', field, by) == 0 then
    redis.call('HDEL', base .. ':counts', field)
  end
end

local function weigh(bytes)
  if bytes ~= 0 then redis.call('INCRBY', base .. ':bytes', bytes) end
end

local function drop(kind, id)
  weigh(-redis.call('STRLEN', key(kind, id)))
  redis.call('DEL', key(kind, id))
end

local function leave(id, job)
  if job.state == 'queued' then
    redis.call('ZREM', key('queue', job.model), id)
    if redis.call('EXISTS', key('queue', job.model)) == 0 then
      redis.call('SREM', base .. ':waiting', job.model)
    end
  elseif job.state == 'running' then
    redis.call('ZREM', base .. ':leases', id)
    redis.call('SREM', key('owned', job.owner), id)
  else
    redis.call('ZREM', base .. ':over', id)
    redis.call('ZREM', base .. ':webhooks', id)
  end
  count(job.model, job.state, -1)
end

-- Ends a job: how long it is kept, what is dropped at once, whom it is told.
local function close(id, job, fields)
  local keep = fields.is_dead_letter == 1 and KEEP_DEAD or KEEP
  local kept_until = now + keep
  if job.is_idempotent == '1' then
    kept_until = math.max(kept_until, tonumber(job.created_at) + IDEMPOTENCY)
  end
  fields.finished_at, fields.kept_until = now, kept_until
  redis.call('ZADD', base .. ':over', kept_until, id)
  redis.call('ZREM', base .. ':deadlines', id)
  if fields.state ~= 'failed' then drop('body', id) end
  if job.webhook then
    fields.webhook_due = now
    redis.call('ZADD', base .. ':webhooks', now, id)
  end
end

-- The one way from state to state. `at`: due for queued, end of the lease for running.
local function move(id, job, to, at, fields)
  assert(MOVES[job.state][to], 'illegal move from ' .. job.state .. ' to ' .. to)
  leave(id, job)
  fields.state, fields.updated_at = to, now
  if to == 'queued' then
    redis.call('ZADD', key('queue', job.model), at, id)
    redis.call('SADD', base .. ':waiting', job.model)
    redis.call('ZADD', base .. ':deadlines', job.deadline_at, id)
  elseif to == 'running' then
    redis.call('ZADD', base .. ':leases', at, id)
    redis.call('SADD', key('owned', fields.owner), id)
  else
    close(id, job, fields)
  end
  count(job.model, to, 1)
  set(id, job, fields)
end

local function is_over(job) return job.state ~= 'queued' and job.state ~= 'running' end

-- A lease ended without a word, or its owner does not know of it.
local function give_back(id, job)
  local reclaims = job.reclaims + 1
  if reclaims >= MOST_RECLAIMS then
    move(id, job, 'failed', nil,
      {reclaims = reclaims, is_dead_letter = 1, problem = ABANDONED})
  else
    move(id, job, 'queued', now, {reclaims = reclaims})
  end
end

local verbs = {}

-- for each: id, tenant, model, deadline, idempotency key or '', fingerprint, body, path, request,
-- model's owner, created at, most attempts, webhook or ''
local WIDTH = 13

-- Adds two arguments to those of a command that is for all jobs of that name.
local function append(commands, name, first, second)
  local list = commands[name] or {}
  commands[name] = list
  list[#list + 1], list[#list + 2] = first, second
end

-- Writes what is new, id → its place in `args`: one command for all wherever there is one.
local function keep(args, new)
  local bodies, deadlines, tenants, queues = {}, {}, {}, {}
  for id, i in pairs(new) do
    local _, tenant, model, deadline, idempotency, fingerprint, body, path, request, model_owner,
      created_at, max_attempts, webhook = unpack(args, i, i + WIDTH - 1)
    redis.call('HSET', key('job', id), 'tenant', tenant, 'model', model, 'deadline_at', deadline,
      'state', 'queued', 'path', path, 'request_id', request, 'model_owner', model_owner,
      'created_at', created_at, 'max_attempts', max_attempts)
    if webhook ~= '' then redis.call('HSET', key('job', id), 'webhook', webhook) end
    if idempotency ~= '' then
      redis.call('HSET', key('job', id), 'is_idempotent', 1)
      redis.call('SET', key('idempotency', tenant .. ':' .. idempotency), id .. ' ' .. fingerprint,
        'PX', IDEMPOTENCY)
    end
    append(bodies, '', key('body', id), body)
    append(deadlines, '', deadline, id)
    append(tenants, tenant, 0, id)
    append(queues, model, now, id)
  end
  for _, its in pairs(bodies) do redis.call('MSET', unpack(its)) end
  for _, its in pairs(deadlines) do redis.call('ZADD', base .. ':deadlines', unpack(its)) end
  for tenant, its in pairs(tenants) do redis.call('ZADD', key('of', tenant), unpack(its)) end
  for model, its in pairs(queues) do
    redis.call('ZADD', key('queue', model), unpack(its))
    redis.call('SADD', base .. ':waiting', model)
    count(model, 'queued', #its / 2)
  end
end

-- → for each: 1 if it is new, {'known' | 'mismatch', {id, fields}} or {'full', bytes}
-- What becomes of each is decided before anything is written.
function verbs.accept(...)
  local args, outcomes, jobs = {...}, {}, {}
  for i = 1, #args, WIDTH do jobs[#jobs + 1] = key('job', args[i]) end
  local are_some_kept = redis.call('EXISTS', unpack(jobs)) > 0
  local before = tonumber(redis.call('GET', base .. ':bytes') or '0')
  local kept, new, keys = before, {}, {}

  local function decide(i, id, tenant, model, deadline, idempotency, fingerprint, body)
    if new[id] or are_some_kept and redis.call('EXISTS', key('job', id)) == 1 then return 1 end
    local known_key = idempotency ~= '' and key('idempotency', tenant .. ':' .. idempotency)
    if known_key then
      local known = keys[known_key] or redis.call('GET', known_key) or ''
      local known_id, known_print = string.match(known, '^(%S+) (%S+)$')
      if known_id and (new[known_id] or redis.call('EXISTS', key('job', known_id)) == 1) then
        return {known_print == fingerprint and 'known' or 'mismatch', known_id}
      end
    end
    local size = #body + JOB_BYTES
    if kept + size > MOST_BYTES then return {'full', kept} end
    kept = kept + size
    new[id] = i
    if known_key then keys[known_key] = id .. ' ' .. fingerprint end
    return 1
  end
  for i = 1, #args, WIDTH do outcomes[#outcomes + 1] = decide(i, unpack(args, i, i + 6)) end

  weigh(kept - before)
  keep(args, new)
  for _, outcome in ipairs(outcomes) do
    if outcome ~= 1 and outcome[1] ~= 'full' then outcome[2] = shown(outcome[2]) end
  end
  return outcomes
end

function verbs.get(id, tenant)
  return load_own(id, tenant) and shown(id)
end

function verbs.answer(id, tenant)
  return load_own(id, tenant) and redis.call('GET', key('answer', id))
end

-- tenant, model or '', state or '', id to follow or '', how many to give, how many to look at
function verbs.page(tenant, model, state, after, wanted, most)
  local from = after == '' and '+' or '(' .. after
  local ids = redis.call('ZREVRANGEBYLEX', key('of', tenant), from, '-', 'LIMIT', 0, most)
  local found, last = {}, false
  for _, id in ipairs(ids) do
    if #found == tonumber(wanted) then return {found, last} end
    local its = redis.call('HMGET', key('job', id), 'model', 'state')
    if its[2] and (model == '' or its[1] == model) and (state == '' or its[2] == state) then
      found[#found + 1] = shown(id)
    end
    last = id
  end
  return {found, #ids == tonumber(most) and last}
end

function verbs.cancel(id, tenant)
  local job = load_own(id, tenant)
  if not job then return false end
  if not is_over(job) then move(id, job, 'cancelled', nil, {}) end
  return shown(id)
end

function verbs.redrive(id, tenant, deadline)
  local job = load_own(id, tenant)
  if not job then return false end
  if job.state == 'failed' then
    for n = 1, tonumber(job.webhook_calls or 0) do
      redis.call('HDEL', key('job', id), 'webhook_call:' .. n)
    end
    redis.call('HDEL', key('job', id), 'finished_at', 'kept_until', 'problem', 'webhook_due',
      'webhook_calls', 'webhook_delivered')
    job.deadline_at = deadline
    move(id, job, 'queued', now,
      {failures = 0, reclaims = 0, is_dead_letter = 0, deadline_at = deadline})
  end
  return shown(id)
end

-- → {model, waiting, due in ms} for each model with waiting jobs
function verbs.backlog()
  local found = {}
  for _, model in ipairs(redis.call('SMEMBERS', base .. ':waiting')) do
    local first = redis.call('ZRANGE', key('queue', model), 0, 0, 'WITHSCORES')
    if first[2] then
      found[#found + 1] = {model, redis.call('ZCARD', key('queue', model)), first[2]}
    end
  end
  return found
end

-- → {id, fields, body} for each job taken
function verbs.take(model, wanted, owner)
  local taken = {}
  local ids = redis.call('ZRANGEBYSCORE', key('queue', model), '-inf', now, 'LIMIT', 0, wanted)
  for _, id in ipairs(ids) do
    local job = listed(id, key('queue', model))
    if job and tonumber(job.deadline_at) <= now then
      move(id, job, 'expired', nil, {})
    elseif job then
      move(id, job, 'running', now + LEASE,
        {owner = owner, attempt = job.attempt + 1, started_at = now})
      taken[#taken + 1] = {id, redis.call('HGETALL', key('job', id)), redis.call('GET', key('body', id))}
    end
  end
  return taken
end

-- owner, then id and attempt for each job it runs → ids it has lost
function verbs.renew(owner, ...)
  local held, lost = {}, {}
  for i = 1, select('#', ...), 2 do
    local id, attempt = select(i, ...)
    local job = load(id)
    held[id] = true
    if not job or job.attempt ~= attempt or job.settled == attempt or is_over(job) then
      lost[#lost + 1] = id
    elseif job.state == 'queued' then
      move(id, job, 'running', now + LEASE, {owner = owner})
    else
      redis.call('ZADD', base .. ':leases', now + LEASE, id)
    end
  end
  for _, id in ipairs(redis.call('SMEMBERS', key('owned', owner))) do
    local job = load(id)
    if not job then redis.call('SREM', key('owned', owner), id)
    elseif not held[id] then give_back(id, job) end
  end
  return lost
end

-- A lease that ends later than one granted now was granted by a clock that has been set back.
function verbs.reclaim()
  local ids = redis.call('ZRANGEBYSCORE', base .. ':leases', '-inf', now, 'LIMIT', 0, BATCH)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. ':leases', '(' .. now + LEASE, '+inf',
    'LIMIT', 0, BATCH)) do
    ids[#ids + 1] = id
  end
  local found = {}
  for _, id in ipairs(ids) do
    local job = listed(id, base .. ':leases')
    if job then
      give_back(id, job)
      found[#found + 1] = id
    end
  end
  return found
end

-- → 1 when this answer is the job's
function verbs.finish(id, attempt, status, content_type, size, is_stored, body)
  local job = load(id)
  if not job then return 0 end
  if is_over(job) then return job.winner == attempt and 1 or 0 end
  if body ~= '' then
    redis.call('SET', key('answer', id), body)
    weigh(#body)
  end
  move(id, job, 'succeeded', nil, {
    winner = attempt, answer_status = status, answer_type = content_type, answer_size = size,
    answer_is_stored = is_stored, problem = ''})
  return 1
end

-- → the job's state, or false when the attempt is not its current one
function verbs.fail(id, attempt, verdict, retry_at, problem)
  local job = load(id)
  if not job or job.attempt ~= attempt then return false end
  if job.settled == attempt then return job.state end
  if job.state ~= 'running' then return false end
  local fields = {settled = attempt, problem = problem}
  if verdict == 'retry' then fields.failures = job.failures + 1 end
  if verdict == 'retry' and fields.failures >= tonumber(job.max_attempts) then
    fields.is_dead_letter = 1
    move(id, job, 'failed', nil, fields)
  elseif verdict == 'give-up' then
    move(id, job, 'failed', nil, fields)
  else
    move(id, job, 'queued', retry_at, fields)
  end
  return job.state
end

function verbs.expire()
  local ids = redis.call('ZRANGEBYSCORE', base .. ':deadlines', '-inf', now, 'LIMIT', 0, BATCH)
  local found = {}
  for _, id in ipairs(ids) do
    local job = listed(id, base .. ':deadlines')
    if job then
      move(id, job, 'expired', nil, {})
      found[#found + 1] = id
    end
  end
  return found
end

function verbs.forgettable()
  local found = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. ':over', '-inf', now, 'LIMIT', 0, BATCH)) do
    if listed(id, base .. ':over') then found[#found + 1] = shown(id) end
  end
  return found
end

function verbs.forget(...)
  for i = 1, select('#', ...) do
    local id = select(i, ...)
    local job = load(id)
    if job and is_over(job) then
      leave(id, job)
      drop('body', id)
      drop('answer', id)
      weigh(-JOB_BYTES)
      redis.call('DEL', key('job', id))
      redis.call('ZREM', key('of', job.tenant), id)
    end
  end
  return 0
end

function verbs.counts()
  return redis.call('HGETALL', base .. ':counts')
end

-- A call counts when it is taken: one that dies on the way is not repeated for ever.
function verbs.take_webhooks(wanted)
  local taken = {}
  local ids = redis.call('ZRANGEBYSCORE', base .. ':webhooks', '-inf', now, 'LIMIT', 0, wanted)
  for _, id in ipairs(ids) do
    local job = listed(id, base .. ':webhooks')
    local calls = job and (job.webhook_calls or 0) + 1
    if job and calls > MOST_WEBHOOK_CALLS then
      redis.call('ZREM', base .. ':webhooks', id)
      redis.call('HDEL', key('job', id), 'webhook_due')
    elseif job then
      redis.call('ZADD', base .. ':webhooks', now + WEBHOOK_LEASE, id)
      set(id, job, {
        webhook_calls = calls, webhook_due = now + WEBHOOK_LEASE,
        ['webhook_call:' .. calls] = now .. ' no word of it'})
      taken[#taken + 1] = shown(id)
    end
  end
  return taken
end

-- id, number of the call, outcome, '1' if delivered, when to call again or ''
function verbs.settle_webhook(id, number, outcome, is_delivered, retry_at)
  local job = load(id)
  if not job or not is_over(job) or job.webhook_calls ~= number then return 0 end
  set(id, job, {['webhook_call:' .. number] = now .. ' ' .. outcome, webhook_delivered = is_delivered})
  if retry_at == '' or tonumber(number) >= MOST_WEBHOOK_CALLS then
    redis.call('ZREM', base .. ':webhooks', id)
    redis.call('HDEL', key('job', id), 'webhook_due')
  else
    redis.call('ZADD', base .. ':webhooks', retry_at, id)
    set(id, job, {webhook_due = retry_at})
  end
  return 1
end

local function run(keys, args)
  base, now = keys[1], tonumber(args[2])
  return verbs[args[1]](unpack(args, 3))
end
