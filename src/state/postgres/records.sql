-- Values say with what they were written and until when they hold, and records stand beside them.
--
-- No row is rewritten: PostgreSQL keeps the defaults of new columns apart. When the values that are here were last
-- written nobody knows; not after now. The function that commits gets another signature, so that executors of the
-- release before, which may still be connected, fail from now on instead of leaving out half.
DROP FUNCTION IF EXISTS executor.commit(bytea, bytea, bigint, smallint, bytea);
ALTER TABLE executor.entity
    ADD COLUMN schema  bigint NOT NULL DEFAULT 0,
    ADD COLUMN updated bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000)::bigint,
    ADD COLUMN expires bigint;
ALTER TABLE executor.entity ALTER COLUMN schema DROP DEFAULT, ALTER COLUMN updated DROP DEFAULT;
CREATE INDEX entity_expires ON executor.entity (expires) WHERE expires IS NOT NULL;
CREATE TABLE executor.record (
    function bytea    NOT NULL,
    room     smallint NOT NULL,
    key      bytea    NOT NULL,
    sub      bytea    NOT NULL,
    version  bigint   NOT NULL,
    value    bytea    NOT NULL,
    due      bigint,
    expires  bigint,
    PRIMARY KEY (function, room, key, sub)
) WITH (fillfactor = 80);
CREATE INDEX record_due ON executor.record (function, due) WHERE due IS NOT NULL;
CREATE INDEX record_expires ON executor.record (expires) WHERE expires IS NOT NULL;

-- The lock of an entity that is absent.
CREATE FUNCTION executor.entity_lock(f bytea, k bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT hashtextextended(encode(f, 'hex') || '/' || encode(k, 'hex'), 0)
$$;

-- A commit of a value alone. Answers with its version, 0 after a delete, or below 0: -1 - the version found.
CREATE FUNCTION executor.commit(
    f bytea, k bytea, expected bigint, new_kind smallint, new_value bytea, new_schema bigint, new_expires bigint,
    moment bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    done bigint;
    found_version bigint;
BEGIN
    LOOP
        IF new_kind IS NULL THEN
            DELETE FROM executor.entity
                WHERE function = f AND key = k AND version = expected RETURNING 0 INTO done;
        ELSIF expected = 0 THEN
            PERFORM pg_advisory_xact_lock(executor.entity_lock(f, k));
            INSERT INTO executor.entity (function, key, version, kind, value, schema, expires, updated)
                VALUES (f, k, nextval('executor.versions'), new_kind, new_value, new_schema, new_expires, moment)
                ON CONFLICT (function, key) DO NOTHING RETURNING version INTO done;
        ELSE
            UPDATE executor.entity
                SET version = nextval('executor.versions'), kind = new_kind, value = new_value,
                    schema = new_schema, expires = new_expires, updated = moment
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

-- A commit of records, and of a value if `expected` is not null: `action` k keeps, p puts, d deletes it. Of records,
-- one in each array: p puts, d deletes, c clears. Answers with {version of what was put, or 0}, {-1, version found} or
-- {-2, index of a record, version found}.
CREATE FUNCTION executor.apply(
    f bytea, k bytea, expected bigint, action "char", new_kind smallint, new_value bytea, new_schema bigint,
    new_expires bigint, moment bigint,
    rooms smallint[], keys bytea[], subs bytea[], expecteds bigint[], actions "char"[], contents bytea[],
    dues bigint[], ends bigint[]
) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    many CONSTANT integer := 16;
    locks bigint[];
    one bigint;
    number bigint;
    found_version bigint;
BEGIN
    -- Whoever changes records of a key has its lock, whether they are there or not; whoever changes those of many
    -- keys has the function's instead, which the others share. All take them in one order.
    SELECT array_agg(DISTINCT id ORDER BY id) INTO locks FROM (
        SELECT hashtextextended(encode(f, 'hex') || '/' || c.room || '/' || encode(c.key, 'hex'), 0) AS id
            FROM unnest(rooms, keys) AS c (room, key)
    ) AS named;
    IF cardinality(locks) > many THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('records of ' || encode(f, 'hex'), 0));
    ELSE
        PERFORM pg_advisory_xact_lock_shared(hashtextextended('records of ' || encode(f, 'hex'), 0));
        FOREACH one IN ARRAY coalesce(locks, '{}') LOOP
            PERFORM pg_advisory_xact_lock(one);
        END LOOP;
    END IF;

    IF expected IS NOT NULL THEN
        IF expected = 0 THEN
            PERFORM pg_advisory_xact_lock(executor.entity_lock(f, k));
        END IF;
        SELECT version INTO found_version FROM executor.entity WHERE function = f AND key = k FOR UPDATE;
        found_version := coalesce(found_version, 0);
        IF found_version <> expected THEN
            RETURN ARRAY[-1, found_version];
        END IF;
    END IF;
    FOR i IN 1 .. cardinality(rooms) LOOP
        CONTINUE WHEN expecteds[i] IS NULL;
        -- Locked, because a sweep needs no other lock.
        SELECT version INTO found_version FROM executor.record
            WHERE function = f AND room = rooms[i] AND key = keys[i] AND sub = subs[i] FOR UPDATE;
        found_version := coalesce(found_version, 0);
        IF found_version <> expecteds[i] THEN
            RETURN ARRAY[-2, i - 1, found_version];
        END IF;
    END LOOP;

    -- All is as expected and stays so. The number is drawn now, when nobody can write a newer one first.
    IF action = 'p' OR 'p' = ANY (actions) THEN
        number := nextval('executor.versions');
    END IF;
    IF action = 'p' AND expected = 0 THEN
        INSERT INTO executor.entity (function, key, version, kind, value, schema, expires, updated)
            VALUES (f, k, number, new_kind, new_value, new_schema, new_expires, moment);
    ELSIF action = 'p' THEN
        UPDATE executor.entity
            SET version = number, kind = new_kind, value = new_value, schema = new_schema, expires = new_expires,
                updated = moment
            WHERE function = f AND key = k;
    ELSIF action = 'd' THEN
        DELETE FROM executor.entity WHERE function = f AND key = k;
    END IF;
    FOR i IN 1 .. cardinality(rooms) LOOP
        IF actions[i] = 'p' THEN
            INSERT INTO executor.record (function, room, key, sub, version, value, due, expires)
                VALUES (f, rooms[i], keys[i], subs[i], number, contents[i], dues[i], ends[i])
                ON CONFLICT (function, room, key, sub) DO UPDATE
                SET version = number, value = excluded.value, due = excluded.due, expires = excluded.expires;
        ELSIF actions[i] = 'd' THEN
            DELETE FROM executor.record
                WHERE function = f AND room = rooms[i] AND key = keys[i] AND sub = subs[i];
        ELSE
            DELETE FROM executor.record WHERE function = f AND room = rooms[i] AND key = keys[i];
        END IF;
    END LOOP;
    RETURN ARRAY[coalesce(number, 0)];
END $$;

-- Removes what expired, and says how many values and records that were. Passes over what somebody else uses. Ends at the
-- value with which too many events have gone, whose rest is for the next time: until then it has ended by any clock, and
-- nobody can add to a log that has lost its begin.
CREATE FUNCTION executor.sweep(moment bigint, most bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    events bigint := 4096;
    gone record;
    swept bigint := 0;
    more bigint;
BEGIN
    FOR gone IN
        SELECT function, key FROM executor.entity WHERE expires <= moment ORDER BY expires LIMIT most
            FOR UPDATE SKIP LOCKED
    LOOP
        -- In a statement of its own, which also sees what was committed before the value was locked.
        DELETE FROM executor.record WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM executor.record WHERE function = gone.function AND room = 1 AND key = gone.key
                LIMIT events
        ));
        GET DIAGNOSTICS more = ROW_COUNT;
        events := events - more;
        swept := swept + 1;
        IF events <= 0 THEN
            UPDATE executor.entity SET version = nextval('executor.versions'), expires = 0, value = ''
                WHERE function = gone.function AND key = gone.key;
            EXIT;
        END IF;
        DELETE FROM executor.entity WHERE function = gone.function AND key = gone.key;
    END LOOP;
    DELETE FROM executor.record WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM executor.record WHERE expires <= moment ORDER BY expires LIMIT most FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS more = ROW_COUNT;
    RETURN swept + more;
END $$;
