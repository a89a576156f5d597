"""What old code sees of a schema, and what of it a migration takes away."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from sqlalchemy import Connection, text

#: A value for each type that our columns have; all texts of a row are equal, so that rows name each other.
_VALUES = {
    "text": "'{value}'", "smallint": "1", "integer": "1", "bigint": "1", "double precision": "1", "boolean": "false",
    "jsonb": "'{{}}'", "text[]": "'{{}}'", "uuid": "gen_random_uuid()", "timestamp with time zone": "clock_timestamp()",
}  # fmt: skip

_COLUMNS = text("""
    SELECT relname AS table, attname AS column, format_type(atttypid, atttypmod) AS type, attnotnull AS required,
           pg_get_expr(adbin, adrelid) AS default
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
         LEFT JOIN pg_attrdef ON adrelid = pg_class.oid AND adnum = attnum
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'
    ORDER BY relname, attnum
""")

#: What can make a statement of old code fail: constraints, unique indexes (keys are such), triggers.
_RULES = text("""
    SELECT conrelid::regclass::text AS table, conname AS name, pg_get_constraintdef(oid) AS definition,
           ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY(conkey)) AS columns
    FROM pg_constraint WHERE contype IN ('c', 'f', 'x') AND connamespace = 'public'::regnamespace
    UNION ALL
    SELECT indrelid::regclass::text, indexrelid::regclass::text, pg_get_indexdef(indexrelid),
           ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = indrelid AND attnum = ANY(indkey))
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indisunique AND relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), '{}' FROM pg_trigger WHERE NOT tgisinternal
""")

_FILES = text("""
    SELECT relname AS table, relfilenode AS file FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
""")

_REFERENCES = text("""
    SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint WHERE contype = 'f'
""")


@dataclass(frozen=True)
class Column:
    """A column as INSERT and SELECT know it."""

    type: str
    required: bool
    default: str | None


@dataclass(frozen=True)
class Rule:
    """A constraint, a unique index or a trigger of a table, and the columns that it is about."""

    definition: str
    columns: frozenset[str]


@dataclass(frozen=True)
class Schema:
    """Tables with their columns and rules, and the files that they lie in: a rewritten table gets a new one."""

    columns: Mapping[str, Mapping[str, Column]]
    rules: Mapping[str, Mapping[str, Rule]]
    files: Mapping[str, int]


def read_schema(connection: Connection) -> Schema:
    """The schema as it is."""
    columns: dict[str, dict[str, Column]] = {}
    for table, column, type, required, default in connection.execute(_COLUMNS):
        columns.setdefault(table, {})[column] = Column(type, required, default)
    rules: dict[str, dict[str, Rule]] = {table: {} for table in columns}
    for table, name, definition, about in connection.execute(_RULES):
        if table in rules:
            rules[table][name] = Rule(definition, frozenset(about))
    files = {row.table: row.file for row in connection.execute(_FILES)}
    return Schema(columns, rules, files)


def findings(old: Schema, new: Schema) -> list[str]:
    """What code for the old schema cannot live with in the new one, and tables that were rewritten on the way."""
    return [words for table in old.columns for words in _of_table(table, old, new)]


def _of_table(table: str, old: Schema, new: Schema) -> Iterator[str]:
    before, after = old.columns[table], new.columns.get(table)
    if after is None:
        yield f"table {table} is gone"
        return
    for name, column in before.items():
        yield from _of_column(f"{table}.{name}", column, after.get(name))
    for name, column in after.items():
        if name not in before and column.required and column.default is None:
            yield f"{table}.{name} is new, required and without a default"
    for name, rule in new.rules[table].items():
        if name not in old.rules[table] and (not rule.columns or rule.columns & set(before)):
            yield f"{name} on {table} is new: {rule.definition}"
    for name, rule in old.rules[table].items():
        if name not in new.rules[table] and "UNIQUE" in rule.definition:
            yield f"{name} on {table} is gone: an ON CONFLICT may name it"
        elif name in new.rules[table] and new.rules[table][name] != rule:
            yield f"{name} on {table} is another: {new.rules[table][name].definition}"
    if old.files[table] != new.files[table]:
        yield f"table {table} is rewritten, and locked for as long as that takes"


def _of_column(name: str, old: Column, new: Column | None) -> Iterator[str]:
    if new is None:
        yield f"{name} is gone"
        return
    if new.type != old.type:
        yield f"{name} was {old.type} and is {new.type}"
    if new.required and not old.required:
        yield f"{name} is required now"
    if old.default is not None and new.default is None:
        yield f"{name} has lost its default"


def fill(connection: Connection, schema: Schema, value: str) -> None:
    """A row in each table, by INSERTs that name the columns of `schema` that must be named: what old code does."""
    order = TopologicalSorter[str](dict.fromkeys(schema.columns, ()))
    for table, other in connection.execute(_REFERENCES):
        if {table, other} <= set(schema.columns):
            order.add(table, other)
    for table in order.static_order():
        named = {name: c.type for name, c in schema.columns[table].items() if c.required and c.default is None}
        columns = ", ".join(f'"{name}"' for name in named)
        values = ", ".join(_VALUES[type].format(value=value) for type in named.values())
        connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({values})"))


def touch(connection: Connection, schema: Schema) -> dict[str, int]:
    """Writes each column of `schema` as it is, in every row; returns how many rows each table has."""
    counts = {}
    for table, columns in schema.columns.items():
        same = ", ".join(f'"{name}" = "{name}"' for name in columns)
        counts[table] = connection.execute(text(f"UPDATE {table} SET {same}")).rowcount
    return counts
