-- What is wrong with the settings in the files, and what comes later than ours and says something else. Of a setting that needs a
-- restart the server says the same whether its value is wrong or only waits: those are tried elsewhere.
SELECT format('%s: %s', coalesce(name, sourcefile || ' line ' || sourceline), error)
FROM pg_file_settings
WHERE error IS NOT NULL
    AND (error <> 'setting could not be applied' OR name NOT IN (SELECT name FROM pg_settings WHERE context = 'postmaster'))
UNION ALL
SELECT format('%s is set to %L in %s, too, which comes later (ALTER SYSTEM RESET %s takes it away there)',
    ours.name, later.setting, later.sourcefile, ours.name)
FROM pg_file_settings AS ours
JOIN pg_file_settings AS later ON later.name = ours.name AND later.seqno > ours.seqno AND later.setting <> ours.setting
WHERE ours.sourcefile = :'file'
UNION ALL
SELECT format('%s is not read: postgresql.conf needs include_dir = ''conf.d''', :'file')
WHERE NOT EXISTS (SELECT FROM pg_file_settings WHERE sourcefile = :'file');
