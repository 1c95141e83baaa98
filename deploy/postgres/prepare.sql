-- What a superuser makes once on an empty server; everything after it is done by the role `somabrain`.
--
--     DATABASE_PASSWORD=… BACKUP_PASSWORD=… psql -v ON_ERROR_STOP=1 -f deploy/postgres/prepare.sql postgresql://postgres@db.example/
--
-- The owner of the tables: no superuser, not exempt from row-level security, may make neither roles nor databases.
\getenv password DATABASE_PASSWORD
\if :{?password}
\else
    DO $$ BEGIN RAISE 'DATABASE_PASSWORD is not set: the password that the role somabrain gets'; END $$;
\endif
\getenv backup_password BACKUP_PASSWORD
\if :{?backup_password}
\else
    DO $$ BEGIN RAISE 'BACKUP_PASSWORD is not set: the password that the role somabrain_backup gets'; END $$;
\endif
CREATE ROLE somabrain LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEROLE NOCREATEDB NOBYPASSRLS;

-- The roles that its transactions run as: a tenant's work, an operator's work. The first migration grants them once
-- more, for which the owner needs ADMIN OPTION on these two, and on nothing else.
CREATE ROLE somabrain_tenant NOLOGIN NOBYPASSRLS;
CREATE ROLE somabrain_operator NOLOGIN NOBYPASSRLS;
GRANT somabrain_tenant, somabrain_operator TO somabrain WITH ADMIN OPTION;

-- Copies the whole cluster for backups, and can read no table. pg_hba.conf must let it: a line
-- `hostssl replication somabrain_backup <address> scram-sha-256`.
CREATE ROLE somabrain_backup LOGIN REPLICATION PASSWORD :'backup_password';

-- Dagster's runs and events are apart from the brain's tables: either is backed up and restored without the other.
-- The same order of text on every machine, by PostgreSQL's own tables.
CREATE DATABASE somabrain OWNER somabrain TEMPLATE template0
    ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8';
CREATE DATABASE somabrain_dagster OWNER somabrain TEMPLATE template0
    ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8';
REVOKE CONNECT, TEMPORARY ON DATABASE somabrain, somabrain_dagster FROM PUBLIC;
GRANT CONNECT ON DATABASE somabrain, somabrain_dagster TO somabrain_backup;

-- pgvector is not a trusted extension: only a superuser may create it.
\connect somabrain
CREATE EXTENSION vector;
