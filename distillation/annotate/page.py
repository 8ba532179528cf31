"""One file as a page: code that is highlighted and linked, notes beside it."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterable
from functools import cache

from pygments.lexers import PythonLexer, get_lexer_by_name
from pygments.token import Comment, Keyword, Literal, Name, Number, Operator, String, Token
from pygments.util import ClassNotFound

from distillation.annotate.names import Use
from distillation.annotate.notes import Page, plain, render
from distillation.annotate.sections import Section, source_lines, split

# First match wins; the classes are coloured in style.css
_CLASSES = [
    (Keyword.Constant, "n"),
    (Keyword, "k"),
    (Operator.Word, "k"),
    (Comment, "c"),
    (String.Interpol, "o"),
    (String.Affix, "k"),
    (String, "s"),
    (Number, "n"),
    (Literal, "s"),
    (Name.Decorator, "d"),
    (Name.Function, "f"),
    (Name.Class, "f"),
    (Name.Builtin, "b"),
    (Name.Exception, "b"),
    (Name.Variable, "b"),
    (Token.Generic.Prompt, "c"),
    (Token.Generic.Output, "c"),
]


@cache
def _class(token) -> str:
    return next((name for kind, name in _CLASSES if token in kind), "")


def _piece(text: str, name: str) -> str:
    shown = html.escape(text)
    return f'<span class="{name}">{shown}</span>' if name and text.strip() else shown


def highlight(text: str, language: str) -> str:
    """Code of a note in HTML; a language that Pygments does not know stays plain."""
    try:
        lexer = get_lexer_by_name(language or "text", stripnl=False, ensurenl=False)
    except ClassNotFound:
        return html.escape(text)
    return "".join(_piece(part, _class(token)) for token, part in lexer.get_tokens(text))


def highlight_lines(source: str, uses: Iterable[tuple[Use, str]]) -> list[str]:
    """Each source line in HTML; `uses` are names with the attributes of the element around them.

    Attributes that begin with `href` make a link.
    """
    by_line: dict[int, list[tuple[Use, str]]] = {}
    for use, attributes in uses:
        by_line.setdefault(use.line, []).append((use, attributes))
    rows: list[list[tuple[str, str]]] = [[]]
    for token, value in PythonLexer(stripnl=False, ensurenl=False).get_tokens(source):
        for i, part in enumerate(value.split("\n")):
            if i:
                rows.append([])
            if part:
                rows[-1].append((part, _class(token)))
    return [_row(row, by_line.get(n, [])) for n, row in enumerate(rows, start=1)]


def _row(pieces: list[tuple[str, str]], uses: list[tuple[Use, str]]) -> str:
    cuts = {at: (use, attributes) for use, attributes in uses for at in range(use.start, use.end)}
    out, column = [], 0
    inside: Use | None = None
    for text, name in pieces:
        while text:
            use, attributes = cuts.get(column, (None, ""))
            if use is not inside:
                out.append(_close(cuts, column - 1) if inside else "")
                out.append(_open(attributes) if use else "")
                inside = use
            n = 1
            while n < len(text) and cuts.get(column + n, (None,))[0] is use:
                n += 1
            out.append(_piece(text[:n], name))
            text, column = text[n:], column + n
    return "".join([*out, _close(cuts, column - 1) if inside else ""])


def _open(attributes: str) -> str:
    return f"<{'a' if attributes.startswith('href') else 'span'} {attributes}>"


def _close(cuts: dict[int, tuple[Use, str]], column: int) -> str:
    return f"</{'a' if cuts[column][1].startswith('href') else 'span'}>"


class Words(list):
    """What the search finds on a page: [id, heading in plain text, text]."""

    def add(self, notes: str, at: str = "", title: str = "") -> None:
        """Each heading of `notes` begins an entry, and so does a `title`, at place `at`."""
        before, *parts = re.split(r'<h[1-6] id="', notes)
        if title or (not self and plain(before)):
            self.append([at, title, plain(before)])
        elif plain(before):
            self[-1][2] += f" {plain(before)}"
        for part in parts:
            title, _, text = part.partition("</h")
            at, _, heading = title.partition('">')
            self.append([html.unescape(at), plain(heading), plain(f"</h{text}")])


def markdown_page(source: str, page: Page) -> tuple[tuple[str, str], Words]:
    """The HTML of a Markdown file (all of it is introduction), and what the search finds there."""
    body = render(source, 1, page)
    words = Words()
    words.add(body)
    return (f'<article class="prose">{body}</article>', ""), words


def python_page(
    source: str, tree: ast.Module, uses: list[tuple[Use, str]], page: Page, title: str
) -> tuple[tuple[str, str], Words]:
    """The HTML of a Python file, introduction and sections, and what the search finds there.

    A file whose docstring has no heading gets `title`; a class or function at the top that has
    none gets its name.
    """
    lines = source_lines(source)
    rows = highlight_lines("\n".join(lines), uses)
    words, out, named = Words(), [], set()
    below = 2  # the level of a name as a heading
    sections = split(source, tree)
    if not sections or not sections[0].is_module:
        sections.insert(0, Section(is_module=True))
    page.ids.update({section.name for section in sections} - {""})
    for section in sections:
        before = len(page.headings)
        notes = "".join(_note(note, page) for note in section.notes)
        heads = page.headings[before:]
        if section.is_module and all(level > 1 for level, _, _ in heads):
            notes = _heading(1, title, page.new_id(title), page, before) + notes
        elif not heads and _has_own_heading(section):
            notes = _heading(below, section.name, section.name, page, before) + notes
        if any(level == 2 for level, _, _ in heads):
            below = 3
        code = section.code(lines)
        words.add(notes, section.name, "" if heads else section.name.rpartition(".")[2])
        own = section.name if section.name not in named else ""
        named.add(own)
        out.append(_section(section, own, notes, [(n, rows[n - 1]) for n in code]))
        page.ids.update(f"L{n}" for n in code)
    return (out[0], "".join(out[1:])), words


def _has_own_heading(section: Section) -> bool:
    return bool(section.name) and "." not in section.name and not section.name.startswith("_")


def _note(note, page: Page) -> str:
    if note.unraw:
        page.problem(note.unraw, 'a docstring with a backslash must be raw: r"""…"""')
    return render(note.text, note.line, page)


def _heading(level: int, name: str, at: str, page: Page, place: int) -> str:
    shown = f"<code>{html.escape(name)}</code>"
    page.ids.add(at)
    page.headings.insert(place, (level, at, shown))
    link = f'<a class="here" href="#{at}" aria-label="Link to this section">#</a>'
    # The section itself has a definition's name as its id
    own = f' id="{at}"' if level == 1 else ""
    return f"<h{level}{own}>{shown} {link}</h{level}>\n"


def _section(section: Section, own: str, notes: str, code: list[tuple[int, str]]) -> str:
    kind = "intro" if section.is_module else "row"
    at = f' id="{html.escape(own)}"' if own else ""
    shown = "".join(
        f'<span class="l" id="L{n}"><a class="no" href="#L{n}" tabindex="-1" aria-hidden="true">'
        f"{n}</a>{text}\n</span>"
        for n, text in code
    )
    right = f'<div class="code"><pre><code>{shown}</code></pre></div>' if code else ""
    left = f'<div class="note prose">{notes}</div>' if notes else '<div class="note"></div>'
    return f'<section class="{kind}"{at}>{left}{right}</section>\n'
