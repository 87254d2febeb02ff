-- Run once, when the image makes a new cluster. Not on the server's command line: what stands there wins over what
-- pgkeep-restore writes, and a restored copy that must not archive would.
ALTER SYSTEM SET archive_mode = on;
ALTER SYSTEM SET archive_command = 'pgkeep-archive-push %p';
ALTER SYSTEM SET archive_timeout = 60;
