"""What each name in a set of Python files means: where it is defined, and its other uses.

Nothing is imported. A name's meaning is a dotted path, `package.module.Class.attribute`, found from
scopes, imports (also through packages that export them again, or lazily), base classes, and the
plain types that annotations and constructor calls tell. What cannot be told is left alone.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (*_FUNCTIONS, *_COMPREHENSIONS, ast.ClassDef)
_DEEPEST = 12  # re-exports and base classes followed before giving up


@dataclass(frozen=True)
class Use:
    """A name in the source: 1-based `line`, 0-based `start` and `end` columns, its meaning."""

    line: int
    start: int
    end: int
    meaning: str


@dataclass
class Module:
    """`defined` maps qualified names to lines, `imported` local names to dotted paths, `values`
    qualified names to the expression that tells their type, `bases` classes to theirs."""

    name: str
    tree: ast.Module
    is_package: bool = False
    defined: dict[str, int] = field(default_factory=dict)
    sections: set[str] = field(default_factory=set)  # the classes and functions among them
    imported: dict[str, str] = field(default_factory=dict)
    values: dict[str, ast.expr] = field(default_factory=dict)
    bases: dict[str, list[ast.expr]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._collect(self.tree, "")

    def _collect(self, scope: ast.AST, prefix: str) -> None:
        for name, line, value in bindings(scope):
            self.defined.setdefault(prefix + name, line)
            if value is not None:
                self.values.setdefault(prefix + name, value)
        for node in inside(scope):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and not prefix:
                for alias, target, _ in imports(node, self):
                    self.imported.setdefault(alias, target)
                    self.defined.pop(alias, None)
            if isinstance(node, _DEFINITIONS):
                self.sections.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                self.bases[prefix + node.name] = node.bases
                self._collect(node, f"{prefix}{node.name}.")
            elif isinstance(node, _FUNCTIONS[:2]) and isinstance(scope, ast.ClassDef):
                self._attributes(node, prefix)

    def _attributes(self, method: ast.FunctionDef | ast.AsyncFunctionDef, prefix: str) -> None:
        """`self.name = …` defines an attribute of the class."""
        known = {a.arg: a.annotation for a in arguments(method)}
        me = next(iter(known), None)
        for node in ast.walk(method):
            if _is_own(node, me) and isinstance(node.ctx, ast.Store):
                self.defined.setdefault(prefix + node.attr, node.lineno)
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                value = getattr(node, "annotation", None) or node.value
                if isinstance(value, ast.Name):
                    value = known.get(value.id)
                if value is not None and _is_own(target, me):
                    self.values.setdefault(prefix + target.attr, value)


def _is_own(node: ast.AST, me: str | None) -> bool:
    """Whether `node` is an attribute of a method's own object."""
    return (
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == me
    )


def inside(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope, without those of the scopes within it."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, _SCOPES):
            yield from inside(node)


def arguments(scope: ast.AST) -> list[ast.arg]:
    """Those of a function or lambda, in the order in which they are written; else none."""
    if not isinstance(scope, _FUNCTIONS):
        return []
    a = scope.args
    every = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [arg for arg in every if arg is not None]


def imports(node: ast.Import | ast.ImportFrom, module: Module) -> Iterator[tuple[str, str, str]]:
    """(local name, dotted path it stands for, dotted path as written) of an import."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            whole = alias.asname is not None
            local = alias.asname or alias.name.partition(".")[0]
            yield local, alias.name if whole else local, alias.name
        else:
            base = node.module or ""
            if node.level:
                parts = module.name.split(".")
                up = parts[: len(parts) - node.level + module.is_package]
                base = ".".join([*up, base] if base else up)
            yield alias.asname or alias.name, f"{base}.{alias.name}", f"{base}.{alias.name}"


def _walrus(scope: ast.AST) -> Iterator[ast.Name]:
    """The targets of `:=` in comprehensions; they belong to the scope around these."""
    for node in inside(scope):
        if isinstance(node, ast.NamedExpr) and isinstance(scope, _COMPREHENSIONS):
            yield node.target
        elif isinstance(node, _COMPREHENSIONS):
            yield from _walrus(node)


def bindings(scope: ast.AST) -> Iterator[tuple[str, int, ast.expr | None]]:
    """(name, line, expression that tells its type) of what a scope binds, imports included."""
    for arg in arguments(scope):
        starred = arg in (scope.args.vararg, scope.args.kwarg)
        yield arg.arg, arg.lineno, None if starred else arg.annotation
    foreign = {
        name
        for node in inside(scope)
        if isinstance(node, (ast.Global, ast.Nonlocal))
        for name in node.names
    }
    outer = list(_walrus(scope))
    if isinstance(scope, _COMPREHENSIONS):
        foreign |= {name.id for name in outer}
    else:
        yield from ((name.id, name.lineno, None) for name in outer if name.id not in foreign)
    for node in inside(scope):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id not in foreign:
                yield target.id, node.lineno, getattr(node, "annotation", None) or node.value
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id not in foreign:
                yield node.id, node.lineno, None
        elif isinstance(node, _DEFINITIONS):
            yield node.name, node.lineno, None
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                yield name, node.lineno, None
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            yield node.name, node.lineno, None
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest, node.lineno, None


class Project:
    """Modules by dotted name, and what a dotted path means among them."""

    def __init__(self, modules: list[Module]) -> None:
        self.modules = {m.name: m for m in modules}
        # Classes and functions whose name is that of no other one
        every = [(n, f"{m.name}.{n}") for m in modules for n in m.sections if "." not in n]
        count = Counter(n for n, _ in every)
        self.public = {n: path for n, path in every if count[n] == 1 and n[0] != "_"}

    def find(self, dotted: str, depth: int = 0) -> tuple[str, Module | None, str]:
        """(canonical dotted path, its module or None, qualified name there; "" is the module)."""
        parts = dotted.split(".")
        for n in range(len(parts), 0, -1):
            module = self.modules.get(".".join(parts[:n]))
            if module is None:
                continue
            rest = ".".join(parts[n:])
            if not rest or rest in module.defined:
                return f"{module.name}.{rest}".rstrip("."), module, rest
            if depth > _DEEPEST:
                break
            first, *more = parts[n:]
            if first in module.imported and module.imported[first] != dotted:
                return self.find(".".join([module.imported[first], *more]), depth + 1)
            lazy = self.public.get(first, "") if "__getattr__" in module.defined else ""
            if lazy.startswith(f"{module.name}."):
                return self.find(".".join([lazy, *more]), depth + 1)
            owner, _, last = rest.rpartition(".")
            for base in module.bases.get(owner, []):
                path = self.dotted(base, module)
                if path:
                    found = self.find(f"{path}.{last}", depth + 1)
                    if found[1]:
                        return found
            if "." in owner or owner in module.values:
                path = self.kind(module.values.get(owner), module)
                if path:
                    return self.find(f"{path}.{last}", depth + 1)
            break
        return dotted, None, ""

    def dotted(self, node: ast.AST | None, module: Module) -> str:
        """The dotted path that an expression at the top of `module` names, or ""."""
        if isinstance(node, ast.Name):
            if node.id in module.imported:
                return module.imported[node.id]
            return f"{module.name}.{node.id}" if node.id in module.defined else ""
        if isinstance(node, ast.Attribute):
            path = self.dotted(node.value, module)
            return f"{path}.{node.attr}" if path else ""
        return ""

    def kind(self, node: ast.AST | None, module: Module) -> str:
        """The dotted path of the class that an annotation or a constructor call tells, or ""."""
        if isinstance(node, ast.BinOp):
            return self.kind(node.left, module) or self.kind(node.right, module)
        if isinstance(node, ast.Call):
            node = node.func
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                return self.kind(ast.parse(node.value, mode="eval").body, module)
            except SyntaxError:
                return ""
        path, found, name = self.find(self.dotted(node, module) or "")
        return path if found and name in found.bases else ""
