-- The statements that are missing until the role :role has the password with this verifier, the memberships, functions and databases
-- that are wanted: one a line, and none where all is as it should be. Arrays come as JSON.
WITH wanted AS (
    SELECT :'role' AS name, (SELECT oid FROM pg_roles WHERE rolname = :'role') AS oid
), statements (number, statement) AS (
    SELECT 1, format('CREATE ROLE %I LOGIN', name) FROM wanted WHERE oid IS NULL
    UNION ALL
    SELECT 2, format('ALTER ROLE %I LOGIN', name) FROM wanted JOIN pg_roles USING (oid) WHERE NOT rolcanlogin
    UNION ALL
    -- A dump that leaves rows out is none.
    SELECT 3, format('ALTER ROLE %I BYPASSRLS', name) FROM wanted LEFT JOIN pg_roles USING (oid)
    WHERE :'dumps' AND NOT coalesce(rolbypassrls, false)
    UNION ALL
    SELECT 4, format('GRANT %I TO %I', granted, name) FROM wanted, json_array_elements_text(:'groups') AS granted
    WHERE NOT EXISTS (
        SELECT FROM pg_auth_members AS member JOIN pg_roles AS of ON of.oid = member.roleid
        WHERE member.member = wanted.oid AND of.rolname = granted)
    UNION ALL
    SELECT 5, format('GRANT EXECUTE ON FUNCTION %s TO %I', granted, name)
    FROM wanted, json_array_elements_text(:'functions') AS granted
    WHERE oid IS NULL OR NOT has_function_privilege(oid, granted::regprocedure, 'EXECUTE')
    UNION ALL
    -- Where everybody may connect this is needed nevertheless: that may be taken away, by this role or by somebody else.
    SELECT 6, format('GRANT CONNECT ON DATABASE %I TO %I', datname, name)
    FROM wanted, pg_database
    WHERE datallowconn AND (datname = current_database() OR :'dumps' AND datname <> 'template1') AND NOT EXISTS (
        SELECT FROM aclexplode(datacl) WHERE grantee = wanted.oid AND privilege_type = 'CONNECT')
)
SELECT statement FROM statements ORDER BY number, statement;
