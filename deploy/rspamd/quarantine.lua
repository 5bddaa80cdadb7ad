-- Block rules of the mail quarantine, for messages that Rspamd would deliver. metadata_exporter.conf loads this file and
-- has its settings.
--
-- This file only decides from whom a message is withheld. The exporter's rule posts it to the portal, and takes these
-- recipients off once the portal has answered that it holds the message. So nothing is lost while the portal is down,
-- or without that rule. Messages with the verdict reject, discard, quarantine or soft reject stay as they are: the
-- portal applies its rules to those that are posted.
--
-- Lines of the map: "RECIPIENT|SENDER VALUE". RECIPIENT is an address, a domain or "*"; SENDER is an address, a domain
-- with its subdomains, or a network; VALUE is block, binding or allow. Order and meaning are those of
-- portal/policy/decision.py. An allow rule only ends a block of its own or of a wider scope. The line
-- "recipient_delimiter| +" says at which characters the extension of a recipient begins. "RECIPIENT| whole" says that
-- this recipient's extension counts, since others than the owner of the address may read its mail.

local lua_maps = require "lua_maps"
local rspamd_ip = require "rspamd_ip"
local rspamd_logger = require "rspamd_logger"
local rspamd_util = require "rspamd_util"

local VERSION = 1
local SENDERS = 20 -- how many senders of a message are looked up: thousands in From would take seconds
local NETWORK_RANK = 128 -- after all domains: a domain has at most 127 labels (RFC 1035, 2.3.4)
local PREFIX_MIN = { [4] = 8, [6] = 16 } -- the largest networks that a rule can name

local options = (rspamd_config:get_all_opt('metadata_exporter') or {}).block_map
if not options then
  return
end
local map = lua_maps.map_add_from_ucl(options, 'map', 'block rules of the mail quarantine')
if not map then
  rspamd_logger.errx(rspamd_config, 'quarantine: block_map cannot be used, so no sender is blocked')
  return
end
quarantine_blocks = { version = VERSION } -- read by the exporter's rule

-- Messages that the portal holds are discarded, so the action must exist.
if not rspamd_config:get_metric_action('discard') then
  rspamd_config:set_metric_action('discard', { flags = { 'no_threshold' } })
end

-- Return the recipients as in the envelope. Before about 3.5 the list contains the originals (braced), followed by
-- copies without plus tags and quotes; later versions mark the originals.
local function as_written(list)
  for _, flag in ipairs({ 'original', 'braced', false }) do
    local found = {}
    for _, address in ipairs(list or {}) do
      if not flag or (address.flags or {})[flag] then
        found[#found + 1] = (address.raw or address.addr or ''):gsub('^<(.*)>$', '%1')
      end
    end
    if #found > 0 then
      return found
    end
  end
  return {}
end

-- Return an address as in the map: in lower case, without quotes and, for a delimiter, without the address extension.
-- As in Postfix, at least one character of the local part stays.
local function key_of(address, delimiters)
  local user, domain = address:match('^(.*)@([^@]*)$')
  if not user then
    return rspamd_util.lower_utf8(address), nil
  end
  local quoted = user:match('^"(.*)"$')
  if quoted then
    user = quoted:gsub('\\(.)', '%1')
  elseif delimiters then
    for position = 2, #user do
      if delimiters:find(user:sub(position, position), 1, true) then
        user = user:sub(1, position - 1)
        break
      end
    end
  end
  domain = rspamd_util.lower_utf8(domain)
  return rspamd_util.lower_utf8(user) .. '@' .. domain, domain
end

-- Call `add` with an address, its domain and its parent domains, and how specific each is: 0 is most specific.
local function each_key(address, add)
  local key, domain = key_of(address)
  domain = domain or key
  local rank = 0
  if key ~= domain then
    add(key, rank)
    rank = rank + 1
  end
  while domain ~= '' and domain:sub(1, 1) ~= '[' do
    add(domain, rank)
    rank = rank + 1
    domain = domain:match('^[^.]*%.(.*)$') or ''
  end
end

-- Return the senders of a message as in the map, each with its rank for block rules and for allow rules. These ignore
-- the envelope sender, which anybody can write.
local function sender_keys(task)
  local keys, ranks, seen, count = {}, {}, {}, 0
  local function add_all(address, may_allow)
    if address == '' or seen[address .. tostring(may_allow)] or count >= SENDERS then
      return
    end
    seen[address .. tostring(may_allow)], count = true, count + 1
    each_key(address, function(text, rank)
      local key = ranks[text]
      if not key then
        key = { text = text, block = rank }
        ranks[text], keys[#keys + 1] = key, key
      end
      key.block = math.min(key.block, rank)
      if may_allow then
        key.allow = math.min(key.allow or rank, rank)
      end
    end)
  end
  for _, address in ipairs(task:get_from({ 'mime', 'orig' }) or {}) do
    add_all(address.addr or '', true)
  end
  add_all(as_written(task:get_from({ 'smtp', 'orig' }))[1] or '', false)
  return keys
end

-- Return the networks of the sending host, the smallest first.
local function network_keys(task)
  local ip = task:get_from_ip()
  if not ip or not ip:is_valid() then
    return {}
  end
  local mapped = ip:to_string():match('^::ffff:(%d+%.%d+%.%d+%.%d+)$')
  if mapped then
    ip = rspamd_ip.from_string(mapped)
  end
  local keys, version = {}, ip:get_version()
  for length = version == 4 and 32 or 128, PREFIX_MIN[version], -1 do
    local rank = NETWORK_RANK + #keys
    keys[#keys + 1] = {
      text = string.format('%s/%d', ip:apply_mask(length):to_string(), length), block = rank, allow = rank,
    }
  end
  return keys
end

-- Return the value of the most specific line of a scope; block is before allow. Other values count as no line.
local function winner(scope, ...)
  local best, best_rank
  for _, keys in ipairs({ ... }) do
    for _, key in ipairs(keys) do
      local value = map:get_key(scope .. '|' .. key.text)
      local rank = value == 'allow' and key.allow or (value == 'block' or value == 'binding') and key.block
      if rank and (not best or rank < best_rank or (rank == best_rank and (best == 'allow' or value == 'binding'))) then
        best, best_rank = value, rank
      end
    end
  end
  return best
end

-- Return the recipients, as written, from whom the message is withheld, and how many recipients it has.
local function withheld_from(task)
  local recipients = as_written(task:get_recipients({ 'smtp', 'orig' }))
  local senders = sender_keys(task)
  if #recipients == 0 then
    return {}, 0
  end
  local networks = network_keys(task)
  local delimiters = map:get_key('recipient_delimiter|') or nil
  local site = winner('*', senders, networks)
  local domains, found = {}, {}
  for _, address in ipairs(recipients) do
    local key, domain = key_of(address)
    if delimiters and not map:get_key(key .. '|') then -- else the alias file names readers for this extension
      key = key_of(address, delimiters)
    end
    if domain and not key:find('|', 1, true) then
      if domains[domain] == nil then
        domains[domain] = winner(domain, senders, networks) or false
      end
      local of_domain = domains[domain]
      local is_binding = of_domain == 'binding' or site == 'binding'
      local first = is_binding and 'block' or winner(key, senders) or of_domain or site
      if first and first ~= 'allow' then
        found[#found + 1] = address
      end
    end
  end
  return found, #recipients
end

local id = rspamd_config:register_symbol{
  name = 'PORTAL_POLICY',
  type = 'postfilter',
  -- Rspamd skips other postfilters after a forced verdict, also if that lets the message pass.
  flags = 'ignore_passthrough,nostat',
  callback = function(task)
    local found, count = withheld_from(task)
    if #found == 0 then
      return
    end
    local is_all = #found == count
    task:insert_result(is_all and 'PORTAL_BLOCK' or 'PORTAL_SPLIT', 1.0)
    -- Over HTTP nobody takes recipients off. Then all get the message: nobody who did not block it loses it.
    if is_all or task:has_flag('milter') then
      task:get_mempool():set_variable('quarantine_withheld', table.concat(found, '\n'))
    end
  end,
}
for name, description in pairs({
  PORTAL_BLOCK = 'All recipients block the sender',
  PORTAL_SPLIT = 'Some recipients block the sender',
}) do
  rspamd_config:register_symbol{ name = name, type = 'virtual', parent = id, score = 0.0, group = 'quarantine',
    description = description }
end
