-- What a mail's own headers ask for; the only rules with a score in these tests.
--   X-Test-Score: 20         adds that score (Debian's thresholds: 4 greylist, 6 add header, 15 reject)
--   X-Test-Symbols: 300      adds that many symbols without score, up to 600
--   X-Test-Options: 1        adds a symbol with awkward options
--   X-Test-Virus: 1          adds a symbol without score, as virus scanners do
--   X-Test-Dmarc: example.net  adds the symbol of a DMARC check that passed for this domain
--   X-Test-Force: discard    forces that action, as force_actions and multimap do
local reg = rspamd_config
reg:register_symbol{ name = 'TEST_SCORE', score = 1.0, group = 'test',
  description = 'The "score"\r\nof a header, ' .. string.rep('ü', 200),
  callback = function(task)
    local h = task:get_header('X-Test-Score')
    if h and tonumber(h) then return true, tonumber(h) end
  end }
reg:register_symbol{ name = 'TEST_OPTIONS', score = 0.1, group = 'test',
  callback = function(task)
    if task:get_header('X-Test-Options') then
      return true, 1.0, 'plain', 'with "quotes", a comma', 'tab\there', 'back\\slash',
        'Grüße 漢字', 'https://www.example.net/a?b=c&d=e', 'raw\255byte', ''
    end
  end }
reg:register_symbol{ name = 'TEST_VIRUS', score = 0.0, group = 'test',
  callback = function(task)
    return task:get_header('X-Test-Virus') and true or false
  end }
local dmarc = reg:register_symbol{ name = 'TEST_DMARC', type = 'callback',
  callback = function(task)
    local domain = task:get_header('X-Test-Dmarc')
    if domain then task:insert_result('DMARC_POLICY_ALLOW', 1.0, domain, 'none') end
  end }
reg:register_symbol{ name = 'DMARC_POLICY_ALLOW', type = 'virtual', parent = dmarc, score = 0.0, group = 'test' }
local many = reg:register_symbol{ name = 'TEST_MANY', type = 'callback',
  callback = function(task)
    local n = tonumber(task:get_header('X-Test-Symbols') or '0') or 0
    for i = 1, math.min(n, 600) do
      task:insert_result(string.format('TEST_MANY_SYMBOL_WITH_A_LONG_NAME_%03d', i), 1.0,
        string.format('option-%d.example.net', i))
    end
  end }
for i = 1, 600 do
  reg:register_symbol{ name = string.format('TEST_MANY_SYMBOL_WITH_A_LONG_NAME_%03d', i),
    type = 'virtual', parent = many, score = 0.0, group = 'test' }
end
reg:register_symbol{ name = 'TEST_FORCE', type = 'prefilter',
  callback = function(task)
    local a = task:get_header('X-Test-Force')
    if a then task:set_pre_result(a, 'forced by a test header') end
  end }
