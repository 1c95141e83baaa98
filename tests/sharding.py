"""What a distributed Postgres asks of the store: every join of two tenants' tables names the tenant.

Statements are read from the store's modules by Postgres' own parser. What a statement leaves open (a
partition's name, a list of columns) is filled in by `OPEN`; a statement that cannot be read is an error, so
none is left out.
"""

import ast
import importlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pglast
from pglast import ast as sql
from pglast.enums import A_Expr_Kind

from somabrain_dagster import store

STORE = Path(store.__file__).parent
TENANT = "tenant_id"
NOT_POSTGRES = {"spool.py"}
"""SQLite's own statements, of a file that one process has for itself."""

OPEN: Mapping[str, Mapping[str, str]] = {
    "daily.py": {
        "marks": "marks AS (SELECT m.tenant_id, m.feedback_seq FROM log_marks m JOIN weight_changes c "
        "ON (c.tenant_id, c.version, c.hash) = (m.tenant_id, m.version, m.hash))",
        "partition": "feedback_events",
    },
    "indexes.py": {"partition": "memories_default", "columns": "tenant_id, memory_id", "tenant": "$1"},
    "landed.py": {"": "feedback_events"},
    "outbox.py": {"log": "weight_changes", "number": "version", "digest": "hash", "": "feedback_events"},
    "recalls.py": {"distance": "m.embedding <=> $1"},
    "retention.py": {
        "number": "seq",
        "partition": "feedback_events",
        "table": "idempotency_keys",
        "time": "created_at",
        "old": "feedback_events",
        "held": "feedback_events",
    },
    "row_digests.py": {"": "feedback_events"},
    "tampering.py": {"": "weight_changes"},
}
"""What stands for what a module leaves open, by name, `{}` by the empty one. Any other is a value."""

_BEGINS = re.compile(r"\s*(?:--[^\n]*\n\s*)*(?:SELECT|INSERT|UPDATE|DELETE|WITH|MERGE)\b")
_VALUE = re.compile(r"%(?:\((\w+)\))?[sbt]")
_LEFT_OPEN = re.compile(r"(?<!\{)\{(\w*)\}(?!\})")


@dataclass(frozen=True)
class Statement:
    """A statement of the store, and where it stands."""

    module: str
    line: int
    text: str

    @property
    def place(self) -> str:
        """For a person."""
        return f"store/{self.module}:{self.line}"


def statements() -> Iterator[Statement]:
    """Every statement that a module of the store writes down, what it leaves open filled in."""
    for path in sorted(STORE.glob("*.py")):
        if path.name in NOT_POSTGRES:
            continue
        names = vars(importlib.import_module(f"somabrain_dagster.store.{path.stem}"))
        tree = ast.parse(path.read_text())
        parts = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if id(node) in parts:
                continue
            text = _text(node, path.name, names)
            if text is not None and _BEGINS.match(text):
                yield Statement(path.name, getattr(node, "lineno", 0), _filled(text, path.name))


def _text(node: ast.AST, module: str, names: Mapping[str, Any]) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return None
    text = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
        elif isinstance(part, ast.FormattedValue):
            text += _known(part.value, module, names)
    return text


def _known(expression: ast.expr, module: str, names: Mapping[str, Any]) -> str:
    """What an f-string takes from its module; what it takes from a caller is left open."""
    try:
        return str(eval(compile(ast.Expression(expression), module, "eval"), dict(names)))
    except NameError:
        return "{" + (expression.id if isinstance(expression, ast.Name) else "value") + "}"


def _filled(text: str, module: str) -> str:
    values: dict[str, int] = {}
    given = OPEN.get(module, {})

    def open_place(found: re.Match[str]) -> str:
        return given.get(found[1], "NULL")

    def value(found: re.Match[str]) -> str:
        return f"${values.setdefault(found[1] or f'at {found.start()}', len(values) + 2)}"

    return _VALUE.sub(value, _LEFT_OPEN.sub(open_place, text)).replace("%%", "%")


PINNED = "a given tenant"
"""What tenant_id is said to equal where it equals a value."""


@dataclass
class _Joined:
    """Which of a statement's tables are bound to each other by their tenant: sets of names, merged."""

    parents: dict[str, str] = field(default_factory=dict)

    def root(self, name: str) -> str:
        while (parent := self.parents.setdefault(name, name)) != name:
            name = parent
        return name

    def bind(self, one: str, other: str) -> None:
        self.parents[self.root(one)] = self.root(other)


@dataclass
class _Scope:
    """One SELECT, UPDATE, INSERT or DELETE: the names that it can use for tables."""

    outer: "_Scope | None"
    number: int
    names: dict[str, bool] = field(default_factory=dict)

    def find(self, name: str) -> str | None:
        """The table that an alias is, wherever around it was named."""
        if name in self.names:
            return f"{self.number}.{name}"
        return None if self.outer is None else self.outer.find(name)

    @property
    def tenants(self) -> list[str]:
        return [f"{self.number}.{name}" for name, of_tenants in self.names.items() if of_tenants]

    def only(self) -> str | None:
        """The table that an unqualified tenant_id is of."""
        if self.names:
            named = self.tenants or [f"{self.number}.{name}" for name in self.names]
            return named[0]
        return None if self.outer is None else self.outer.only()


class Unbound:
    """Reads a statement and finds the tables of tenants in it that nothing binds to the others.

    Attributes:
        groups: of a statement that joins them by something else than the tenant, the tables that hang
            together, in more than one group.
    """

    def __init__(self, text: str, tenant_tables: Collection[str]) -> None:
        self._tables = tenant_tables
        self._joined = _Joined()
        self._count = 0
        self._seen: dict[str, str] = {}
        self._scopes: dict[int, _Scope] = {}
        self.groups: list[list[str]] = []
        for raw in pglast.parse_sql(text):
            self._read(raw.stmt, None, {})
        groups: dict[str, list[str]] = {}
        for name, table in self._seen.items():
            groups.setdefault(self._joined.root(name), []).append(table)
        if len(groups) > 1:
            self.groups = sorted(groups.values())

    def _read(self, node: Any, outer: _Scope | None, ctes: Mapping[str, _Scope | None]) -> _Scope | None:
        """A query; its scope if what comes out of it belongs to tenants."""
        if isinstance(node, sql.SelectStmt) and node.larg is not None:
            sides = [self._read(side, outer, ctes) for side in (node.larg, node.rarg)]
            kept = [side for side in sides if side is not None]
            # Each row is of one side: what is asked of the whole is asked of both.
            for side in kept[1:]:
                self._bind_all(kept[0].tenants + side.tenants)
            return kept[0] if kept else None
        self._count += 1
        scope = self._scopes[id(node)] = _Scope(outer, self._count)
        known = dict(ctes)
        if getattr(node, "withClause", None) is not None:
            for cte in node.withClause.ctes:
                if node.withClause.recursive:
                    known[cte.ctename] = None
                known[cte.ctename] = self._read(cte.ctequery, outer, known)
        if getattr(node, "relation", None) is not None:
            self._table(node.relation, scope, known)
        if isinstance(node, sql.InsertStmt):
            made = node.selectStmt
            if made is not None:
                self._read(made, outer, known)
                tenant = self._tenant_given(made, [column.name for column in node.cols or ()])
                if tenant is not None:
                    self._bind_all([*scope.tenants, tenant])
            return scope if scope.tenants else None
        for clause in ("fromClause", "usingClause"):
            for item in getattr(node, clause, None) or ():
                self._item(item, scope, known)
        for attribute in node:
            if attribute not in ("fromClause", "usingClause", "withClause", "relation"):
                self._condition(getattr(node, attribute), scope, known)
        return scope if scope.tenants else None

    def _tenant_given(self, made: Any, columns: list[str]) -> str | None:
        """The table whose tenant the rows of an INSERT are given."""
        while made.larg is not None:
            made = made.larg
        scope = self._scopes[id(made)]
        if not made.targetList:
            return PINNED
        if isinstance(getattr(made.targetList[0].val, "fields", [None])[-1], sql.A_Star):
            return scope.only()
        place = columns.index(TENANT) if TENANT in columns else 0
        return self._tenant_of(made.targetList[place].val, scope)

    def _bind_all(self, names: list[str]) -> None:
        for name in names[1:]:
            self._joined.bind(names[0], name)

    def _table(self, node: Any, scope: _Scope, ctes: Mapping[str, _Scope | None]) -> None:
        name = node.alias.aliasname if node.alias else node.relname
        if node.relname in ctes:
            inner = ctes[node.relname]
            scope.names[name] = inner is not None
            if inner is not None:
                self._joined.bind(f"{scope.number}.{name}", inner.tenants[0])
                self._uses(f"{scope.number}.{name}", node.relname)
        else:
            scope.names[name] = node.relname in self._tables
            if node.relname in self._tables:
                self._uses(f"{scope.number}.{name}", node.relname)

    def _uses(self, name: str, table: str) -> None:
        self._joined.root(name)
        self._seen[name] = table

    def _item(self, node: Any, scope: _Scope, ctes: Mapping[str, _Scope | None]) -> None:
        if isinstance(node, sql.RangeVar):
            self._table(node, scope, ctes)
        elif isinstance(node, sql.JoinExpr):
            before = list(scope.names)
            self._item(node.larg, scope, ctes)
            left = [name for name in scope.names if name not in before]
            self._item(node.rarg, scope, ctes)
            right = [name for name in scope.names if name not in before and name not in left]
            using = [part.sval for part in node.usingClause or ()]
            if TENANT in using or node.isNatural:
                for one in self._preferring_tenants(scope, left)[:1]:
                    for other in self._preferring_tenants(scope, right)[:1]:
                        self._joined.bind(f"{scope.number}.{one}", f"{scope.number}.{other}")
            if node.quals is not None:
                self._condition(node.quals, scope, ctes)
        elif isinstance(node, sql.RangeSubselect):
            inner = self._read(node.subquery, scope, ctes)
            name = str(node.alias.aliasname) if node.alias else f"unnamed {self._count}"
            scope.names[name] = inner is not None
            if inner is not None:
                self._joined.bind(f"{scope.number}.{name}", inner.tenants[0])
        elif node.alias is not None:
            scope.names[node.alias.aliasname] = False

    def _preferring_tenants(self, scope: _Scope, names: list[str]) -> list[str]:
        return sorted(names, key=lambda name: not scope.names[name])

    def _condition(self, node: Any, scope: _Scope, ctes: Mapping[str, _Scope | None]) -> None:
        """Whatever a scope says of its tables, queries in it included."""
        if isinstance(node, list | tuple):
            for one in node:
                self._condition(one, scope, ctes)
        elif isinstance(node, sql.SubLink):
            inner = self._read(node.subselect, scope, ctes)
            if node.testexpr is not None:
                self._condition(node.testexpr, scope, ctes)
                tested = self._tenant_of(node.testexpr, scope)
                if tested is not None and inner is not None:
                    self._joined.bind(tested, inner.tenants[0])
        elif isinstance(node, sql.SelectStmt):
            self._read(node, scope, ctes)
        elif isinstance(node, sql.Node):
            if isinstance(node, sql.A_Expr) and node.kind == A_Expr_Kind.AEXPR_OP:
                self._equal(node, scope)
            for attribute in node:
                self._condition(getattr(node, attribute), scope, ctes)

    def _equal(self, node: Any, scope: _Scope) -> None:
        if [part.sval for part in node.name] != ["="]:
            return
        pairs = [(node.lexpr, node.rexpr)]
        if isinstance(node.lexpr, sql.RowExpr) and isinstance(node.rexpr, sql.RowExpr):
            pairs = list(zip(node.lexpr.args or (), node.rexpr.args or (), strict=True))
        for one, other in pairs:
            left, right = self._tenant_of(one, scope), self._tenant_of(other, scope)
            if left is not None and right is not None:
                self._joined.bind(left, right)

    def _tenant_of(self, node: Any, scope: _Scope) -> str | None:
        """The table whose tenant a term is; a value stands for one tenant, or several, that are given."""
        if isinstance(node, sql.ColumnRef):
            names = [str(part.sval) for part in node.fields or () if isinstance(part, sql.String)]
            if names[-1:] != [TENANT]:
                return None
            return scope.find(names[0]) if len(names) > 1 else scope.only()
        if isinstance(node, sql.TypeCast):
            return self._tenant_of(node.arg, scope)
        return PINNED if isinstance(node, sql.ParamRef | sql.A_Const) else None
