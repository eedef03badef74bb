-- What the first release made of an empty database. Never change it.
DO $$ BEGIN
    -- IF NOT EXISTS would need the right to create it also where it is.
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'executor') THEN
        CREATE SCHEMA executor;
    END IF;
END $$;
CREATE TABLE executor.store (
    id     boolean PRIMARY KEY DEFAULT true CHECK (id),
    schema integer NOT NULL
);
INSERT INTO executor.store (schema) VALUES (0);
CREATE SEQUENCE executor.versions AS bigint;
CREATE TABLE executor.entity (
    function bytea    NOT NULL,
    key      bytea    NOT NULL,
    version  bigint   NOT NULL,
    kind     smallint NOT NULL,
    value    bytea    NOT NULL,
    PRIMARY KEY (function, key)
) WITH (fillfactor = 80);
CREATE FUNCTION executor.commit(f bytea, k bytea, expected bigint, new_kind smallint, new_value bytea)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    done bigint;
    found_version bigint;
BEGIN
    LOOP
        IF new_kind IS NULL THEN
            DELETE FROM executor.entity
                WHERE function = f AND key = k AND version = expected RETURNING 0 INTO done;
        ELSIF expected = 0 THEN
            PERFORM pg_advisory_xact_lock(hashtextextended(encode(f, 'hex') || '/' || encode(k, 'hex'), 0));
            INSERT INTO executor.entity (function, key, version, kind, value)
                VALUES (f, k, nextval('executor.versions'), new_kind, new_value)
                ON CONFLICT (function, key) DO NOTHING RETURNING version INTO done;
        ELSE
            UPDATE executor.entity
                SET version = nextval('executor.versions'), kind = new_kind, value = new_value
                WHERE function = f AND key = k AND version = expected RETURNING version INTO done;
        END IF;
        IF done IS NOT NULL THEN
            RETURN done;
        END IF;
        SELECT version INTO found_version FROM executor.entity WHERE function = f AND key = k;
        found_version := coalesce(found_version, 0);
        IF found_version <> expected THEN
            RETURN -1 - found_version;
        ELSIF new_kind IS NULL THEN
            RETURN 0;
        END IF;
        -- It became what was expected only after the attempt: try again.
    END LOOP;
END $$;
UPDATE executor.store SET schema = 1;
