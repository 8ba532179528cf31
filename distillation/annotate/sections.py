"""Split a Python file into sections: a note beside the statements that it describes.

A note is a docstring, or a group of comments on lines of their own. A section starts where a note
or a definition starts, and where the block or paragraph ends that a comment stands in. An empty
comment, `#`, ends a note's reach. Comments inside brackets, and those for tools, stay in the code.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field

_FOR_TOOLS = re.compile(
    r"#(!|\s*(noqa|type:|fmt:|pragma|ruff:|pylint:|mypy:|isort:|-\*-|coding[:=]))"
)
_QUOTED = re.compile(r"""([a-zA-Z]*)('{3}|"{3}|'|")(.*)\2""", re.S)
_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass
class Note:
    """Markdown `text` that begins in source line `line`; `unraw` is the line of a backslash in a
    docstring that is not raw, else 0."""

    line: int
    text: str
    docstring: bool = False
    unraw: int = 0


@dataclass
class Section:
    """`lines` are (number, is code) of consecutive source lines; `name` is that of a definition."""

    lines: list[tuple[int, bool]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    name: str = ""
    is_module: bool = False
    reach: int = -1  # a statement that starts in this column or left of it belongs to the next

    def code(self, source: list[str]) -> list[int]:
        """Numbers of the lines to show, without blank ones at both ends and where notes were."""
        shown: list[int] = []
        for n, is_code in self.lines:
            after_note = not shown or shown[-1] != n - 1
            if is_code and (source[n - 1].strip() or not after_note):
                shown.append(n)
        while shown and not source[shown[-1] - 1].strip():
            shown.pop()
        return shown


def source_lines(source: str) -> list[str]:
    """The lines as Python counts them: only a newline ends one."""
    lines = source.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def split(source: str, tree: ast.Module) -> list[Section]:
    """The sections of `source`: all of its lines, each once and in order."""
    lines = source_lines(source)
    comments, statements = _comments(source)
    found = list(_docstrings(lines, tree))
    docstrings = {first: (last, note) for first, last, note, _ in found}
    heads = dict(_definitions(tree))
    top = next((d for d in found if d[3]), None)
    inside = {n for _, (first, last, _, _) in heads.items() for n in range(first + 1, last + 1)}
    inside |= set(range(1, top[1] + 1)) if top else set()
    sections = [Section(is_module=top is not None)]
    n = 1
    while n <= len(lines):
        now = sections[-1]
        comment = comments.get(n) if n not in inside else None
        head = heads.get(n)
        column = statements.get(n) if n not in inside else None
        over = column is not None and (
            now.is_module
            or column <= now.reach
            or (now.notes and not now.name and column == now.reach + 1 and not lines[n - 2].strip())
        )
        if n in docstrings:
            last, note = docstrings[n]
            now.notes.append(note)
            now.lines += [(k, False) for k in range(n, last + 1)]
            n = last + 1
            continue
        inner = top is not None and n <= top[1]
        if (comment or head or over) and not inner and (now.is_module or now.code(lines)):
            now = Section()
            sections.append(now)
        if comment:
            last, column, note = comment
            now.notes.append(note)
            now.reach = column - 1
            now.lines += [(k, False) for k in range(n, last + 1)]
            n = last + 1
            continue
        if head:
            now.name, now.reach = head[2], head[3]
        now.lines.append((n, True))
        n += 1
    return [s for s in sections if s.lines]


def _comments(source: str) -> tuple[dict[int, tuple[int, int, Note]], dict[int, int]]:
    """Comments by first line: (last line, column, note); and columns of statements by line."""
    groups: list[list[tuple[int, int, str]]] = []
    statements: dict[int, int] = {}
    depth, fresh = 0, True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (line, column), text = token.start, token.string
        if token.type == tokenize.COMMENT:
            alone = not depth and not token.line[:column].strip()
            if alone and not _FOR_TOOLS.match(text):
                if not (groups and groups[-1][-1][:2] == (line - 1, column)):
                    groups.append([])
                groups[-1].append((line, column, text))
        elif token.type == tokenize.NEWLINE:
            fresh = True
        elif token.type not in _LAYOUT:
            if fresh and token.type != tokenize.ENDMARKER:
                statements[line] = column
            fresh = False
            if token.type == tokenize.OP:
                depth += (text in "([{") - (text in ")]}")
    found = {}
    for group in groups:
        text = "\n".join(re.sub(r"^#(:|\s?%%\s*(\[markdown\])?)? ?", "", t) for _, _, t in group)
        found[group[0][0]] = (group[-1][0], group[0][1], Note(group[0][0], text))
    return found, statements


def _definitions(
    tree: ast.AST, prefix: str = ""
) -> Iterator[tuple[int, tuple[int, int, str, int]]]:
    """(first line, (first line, line of the name, qualified name, column)) of each definition."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, _DEFINITIONS):
            name = f"{prefix}.{node.name}".lstrip(".")
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            yield first, (first, node.lineno, name, node.col_offset)
        yield from _definitions(node, name)


def _docstrings(lines: list[str], tree: ast.Module) -> Iterator[tuple[int, int, Note, bool]]:
    """(first line, last line, note, whether the module's) of docstrings with lines of their own."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, *_DEFINITIONS)) or not node.body:
            continue
        first = node.body[0]
        if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
            continue
        constant = first.value
        if not isinstance(constant.value, str):
            continue
        before = lines[constant.lineno - 1].encode()[: constant.col_offset]
        after = lines[constant.end_lineno - 1].encode()[constant.end_col_offset :]
        if before.strip() or not (after.strip() == b"" or after.lstrip().startswith(b"#")):
            continue
        segment = [t.encode() for t in lines[constant.lineno - 1 : constant.end_lineno]]
        segment[-1] = segment[-1][: constant.end_col_offset]
        segment[0] = segment[0][constant.col_offset :]
        note = _note(b"\n".join(segment).decode(), constant)
        yield constant.lineno, constant.end_lineno, note, isinstance(node, ast.Module)


def _note(segment: str, constant: ast.Constant) -> Note:
    """The text between the quotes as written, so that its lines are those of the file."""
    match = _QUOTED.fullmatch(segment)
    text, unraw = constant.value, 0
    if match:
        raw, inner = "r" in match[1].lower(), match[3]
        if "\\" in inner and not raw:
            unraw = constant.lineno + inner[: inner.index("\\")].count("\n")
        if inner == text or unraw:
            text = inner
    first, *rest = text.expandtabs().split("\n")
    margin = min((len(t) - len(t.lstrip()) for t in rest if t.strip()), default=0)
    shown = [first.strip(), *(t[margin:].rstrip() for t in rest)]
    skipped = next((i for i, t in enumerate(shown) if t), 0)
    return Note(constant.lineno + skipped, "\n".join(shown[skipped:]).rstrip(), True, unraw)
