-- The statements that are missing until what everybody may do is taken away: connect to these databases, and create tables in the
-- schema public of this one. Arrays come as JSON.
SELECT format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', datname)
FROM pg_database
WHERE datname IN (SELECT json_array_elements_text(:'connect')) AND EXISTS (
    SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE grantee = 0 AND privilege_type = 'CONNECT')
UNION ALL
SELECT 'REVOKE CREATE ON SCHEMA public FROM PUBLIC'
FROM pg_namespace
WHERE nspname = 'public' AND current_database() IN (SELECT json_array_elements_text(:'create')) AND EXISTS (
    SELECT FROM aclexplode(coalesce(nspacl, acldefault('n', nspowner))) WHERE grantee = 0 AND privilege_type = 'CREATE');
