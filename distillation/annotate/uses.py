"""Every use of a name in one file, with its meaning (see `names`)."""

from __future__ import annotations

import ast
import re

from distillation.annotate.names import (
    Module,
    Project,
    Use,
    arguments,
    bindings,
    imports,
    inside,
)


def uses(project: Project, module: Module, lines: list[str]) -> list[Use]:
    """The uses of names in `module`, whose source is `lines`."""
    walk = _Uses(project, module, lines)
    for node in module.tree.body:
        walk.visit(node)
    return sorted(set(walk.found), key=lambda u: (u.line, u.start))


class _Uses(ast.NodeVisitor):
    def __init__(self, project: Project, module: Module, lines: list[str]) -> None:
        self.project, self.module, self.lines = project, module, lines
        self.found: list[Use] = []
        self.path = module.name
        # Innermost last: (names to meanings, types of names, is a class)
        self.scopes: list[tuple[dict[str, str], dict[str, str], bool]] = []
        self.classes: list[str] = []

    def meaning(self, name: str) -> str:
        for i, (names, _, is_class) in enumerate(reversed(self.scopes)):
            if name in names and (not is_class or i == 0):
                return names[name]
        return self.project.dotted(ast.Name(name), self.module)

    def type_of(self, node: ast.AST) -> str:
        """The dotted path of the class that an expression is an instance of, or ""."""
        if isinstance(node, ast.Name):
            for names, types, is_class in reversed(self.scopes):
                if node.id in names and not is_class:
                    return types.get(node.id, "")
            return self.project.kind(self.module.values.get(node.id), self.module)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "super" and self.classes:
                _, module, name = self.project.find(self.classes[-1])
                bases = module.bases.get(name, []) if module else []
                return next((p for b in bases if (p := self.project.dotted(b, module))), "")
            path, module, name = self.project.find(self.dotted(node.func))
            return path if module and name in module.bases else ""
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            _, module, name = self.project.find(f"{owner}.{node.attr}") if owner else ("", None, "")
            return self.project.kind(module.values.get(name), module) if module else ""
        return ""

    def dotted(self, node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return self.meaning(node.id)
        if isinstance(node, ast.Attribute):
            path = self.type_of(node.value) or self.dotted(node.value)
            return f"{path}.{node.attr}" if path else ""
        return ""

    def add(self, name: str, line: int, near: int, meaning: str) -> None:
        """Note `name` at or after byte `near` of `line`; what the source does not show is not."""
        text = self.lines[line - 1]
        column = len(text.encode()[:near].decode(errors="ignore"))
        match = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)").search(text, column)
        if meaning and match:
            path = self.project.find(meaning)[0]
            self.found.append(Use(line, match.start(), match.end(), path))

    def visit_Name(self, node: ast.Name) -> None:
        if self.lines[node.lineno - 1].encode()[node.col_offset :].startswith(node.id.encode()):
            self.add(node.id, node.lineno, node.col_offset, self.meaning(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        near = node.end_col_offset - len(node.attr.encode())
        written = self.lines[node.end_lineno - 1].encode()[near : node.end_col_offset]
        if near >= 0 and written == node.attr.encode():
            self.add(node.attr, node.end_lineno, near, self.dotted(node))
        self.visit(node.value)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            self.add(node.module, node.lineno, node.col_offset, node.module)
        for alias, (local, target, written) in zip(
            node.names, imports(node, self.module), strict=True
        ):
            self.add(alias.name, alias.lineno, alias.col_offset, written)
            if alias.asname:
                near = alias.end_col_offset - len(alias.asname.encode())
                self.add(local, alias.end_lineno, near, target)

    visit_ImportFrom = visit_Import

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.define(node)
        for outer in [*node.decorator_list, *node.bases, *node.keywords]:
            self.visit(outer)
        self.enter(node, node.name, node.body, is_class=True)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.define(node)
        annotations = [arg.annotation for arg in arguments(node)]
        defaults = [*node.args.defaults, *node.args.kw_defaults]
        for outer in filter(None, [*node.decorator_list, *defaults, *annotations, node.returns]):
            self.visit(outer)
        self.enter(node, node.name, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(default)
        self.enter(node, f"<lambda {node.lineno}:{node.col_offset}>", [node.body])

    # Names that are no expressions in the tree, which does not say where they stand

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.add(
                node.name, node.type.end_lineno, node.type.end_col_offset, self.meaning(node.name)
            )
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        if node.name:
            near = node.end_col_offset - len(node.name.encode())
            self.add(node.name, node.end_lineno, near, self.meaning(node.name))
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest:
            before = [node.lineno, node.col_offset]
            if node.patterns:
                before = [node.patterns[-1].end_lineno, node.patterns[-1].end_col_offset]
            self.add(node.rest, *before, self.meaning(node.rest))
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global | ast.Nonlocal) -> None:
        for name in node.names:
            self.add(name, node.lineno, node.col_offset, self.meaning(name))

    visit_Nonlocal = visit_Global

    def comprehension(self, node: ast.expr) -> None:
        self.enter(node, f"<for {node.lineno}:{node.col_offset}>", ast.iter_child_nodes(node))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = comprehension

    def define(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.add(node.name, node.lineno, node.col_offset, self.meaning(node.name))

    def enter(self, node: ast.AST, name: str, body, *, is_class: bool = False) -> None:
        outer, path = self.path, f"{self.path}.{name}"
        is_method = not is_class and bool(self.scopes) and self.scopes[-1][2]
        names: dict[str, str] = {}
        types: dict[str, str] = {}
        for bound, _, value in bindings(node):
            names.setdefault(bound, f"{path}.{bound}" if is_class else f"{path}.<{bound}>")
            if value is not None and bound not in types:
                types[bound] = self.project.kind(value, self.module)
        for child in inside(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                names |= {local: target for local, target, _ in imports(child, self.module)}
        if is_class:
            self.classes.append(path)
        if is_method and self.classes and (given := arguments(node)):
            types[given[0].arg] = self.classes[-1]
        self.scopes.append((names, types, is_class))
        self.path = path
        for arg in arguments(node):
            self.add(arg.arg, arg.lineno, arg.col_offset, names[arg.arg])
        for child in body:
            self.visit(child)
        self.scopes.pop()
        self.path = outer
        if is_class:
            self.classes.pop()
