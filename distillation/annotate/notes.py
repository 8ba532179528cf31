r"""Notes to HTML: Markdown with `$…$` and `$$…$$` as MathML, doctests and `Args:` lists.

Raw HTML is shown as text, but for `<a id="name"></a>`, which marks a place to link to, and
comments, which are left out. Everything else is escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, reference
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from distillation.annotate.mathml import MathError, math

_INLINE_HTML = re.compile(r'<a (?:id|name)="([\w.:-]+)"></a>|<!--.*?-->', re.S)
_LONE_DOLLAR = re.compile(r"[^\s\d${][^`\n]*[\\^]")
_REFERENCE = re.compile(r"(?<![\w\])])\[[^\[\]]+\]\[[A-Za-z][^\[\]]+\]")
_FOOTNOTE = re.compile(r"\[\^[^\s\[\]]+\]")
_SECTION = re.compile(r"(Args|Arguments|Attributes|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_ITEM = re.compile(r"(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*(?: \([^)]*\))?):(?= |$)(.*)")


@dataclass
class Page:
    """What the notes of one page refer to, and what was found in them.

    `link(href, line)` and `picture(src, line)` give the address to write, `name(text)` the
    attributes of a link for a name in code, or "". `problem(line, text)` reports.
    """

    link: Callable[[str, int], str]
    picture: Callable[[str, int], str]
    name: Callable[[str], str]
    problem: Callable[[int, str], None]
    code: Callable[[str, str], str]
    ids: set[str] = field(default_factory=set)
    headings: list[tuple[int, str, str]] = field(default_factory=list)  # level, id, HTML

    def new_id(self, text: str) -> str:
        """An id like GitHub's for a heading, not used on the page before."""
        slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") or "section"
        found, n = slug, 0
        while found in self.ids:
            n += 1
            found = f"{slug}-{n}"
        self.ids.add(found)
        return found


def render(text: str, line: int, page: Page) -> str:
    """The HTML of Markdown `text` that begins in source line `line`."""
    env: dict = {"page": page}
    prepared, numbers = _google(text)
    tokens = _MD.parse(prepared, env)
    now = line
    for i, token in enumerate(tokens):
        now = line + numbers[token.map[0]] if token.map else now
        if token.type == "heading_open":
            page_id = page.new_id(_plain(tokens[i + 1]))
            token.attrSet("id", page_id)
            token.meta = {"anchor": page_id}
        elif token.type == "math":
            _prepare(token, now, page)
        elif token.type in ("th_open", "td_open") and "style" in token.attrs:
            # The page's policy allows no style in an element
            token.attrSet("class", str(token.attrs.pop("style")).removeprefix("text-align:"))
        elif token.type == "inline":
            if tokens[i - 1].hidden and any(c.type == "math" for c in token.children or []):
                # A long formula scrolls; in a box of its own, or the item would lose its bullet
                tokens[i - 1].hidden = tokens[i + 1].hidden = False
                tokens[i - 1].attrSet("class", "tight")
            at = now
            for child in token.children or []:
                _prepare(child, at, page)
                at += child.type in ("softbreak", "hardbreak") or child.content.count("\n")
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            inner = _MD.renderer.renderInline(tokens[i + 1].children or [], _MD.options, env)
            shown = re.sub(r"</?a\b[^>]*>", "", inner)
            page.headings.append((int(token.tag[1]), str(token.attrGet("id")), shown))
    return _MD.renderer.render(tokens, _MD.options, env)


def plain(rendered: str) -> str:
    """The text of rendered notes, for the search and for titles."""
    text = re.sub(r'<a class="here".*?</a>', "", rendered)
    text = re.sub(r"<(/?(p|ul|li|h\d|pre|div|t[dhr])|br)\b[^>]*>", " ", text)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))).strip()


def _plain(inline: Token) -> str:
    kept = ("text", "code_inline", "math", "sign")
    return "".join(c.content for c in inline.children or [] if c.type in kept)


def _prepare(token: Token, line: int, page: Page) -> None:
    if token.type == "math":
        try:
            token.meta["html"] = math(token.content, display=token.block or token.meta["display"])
        except MathError as error:
            page.problem(line, f"broken math, {error}: {token.content.strip()}")
            shown = html.escape(token.content)
            token.meta["html"] = f'<code class="broken" title="broken math">{shown}</code>'
    elif token.type == "link_open":
        token.attrSet("href", page.link(str(token.attrGet("href")), line))
    elif token.type == "image":
        token.attrSet("src", page.picture(str(token.attrGet("src")), line))
    elif token.type == "anchor" and token.content:
        page.ids.add(token.content)
    elif token.type == "text":
        for footnote in _FOOTNOTE.findall(token.content):
            page.problem(line, f"footnotes are not supported: {footnote} (or is it `code`?)")
        if undefined := _REFERENCE.search(token.content):
            text = f"dead link: {undefined[0]} is defined nowhere here (or is it `code`?)"
            page.problem(line, text)
    elif token.type == "sign" and token.meta["lone"]:
        page.problem(line, "a lone $: close the formula, or write \\$")


def _google(text: str) -> tuple[str, list[int]]:
    """Google's `Args:` sections as Markdown lists, and the line that each line comes from."""
    out: list[str] = []
    numbers: list[int] = []
    base: int | None = None  # indentation of the section's heading
    inner = 0
    fenced = example = False
    for number, line in enumerate(text.split("\n")):
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        indent = len(line) - len(line.lstrip())
        if base is not None and line.strip() and indent <= base:
            base = None
        heading = None if fenced else _SECTION.match(line.strip())
        if base is None and heading and indent == 0:
            base, inner, example = indent, 0, heading[1].startswith("Example")
            if out and out[-1].strip():
                out.append("")
                numbers.append(number)
            line = f"**{heading[1]}**"
        elif base is not None and line.strip():
            inner = inner or indent
            if fenced or example:  # code keeps its columns
                line = line[min(inner, indent) :]
            else:
                item = _ITEM.match(line.strip()) if indent == inner else None
                # What hangs below an item is two columns in, for Markdown
                hanging = " " * (2 + max(0, indent - inner - 4)) if indent > inner else ""
                line = f"* `{item[1]}`:{item[2]}" if item else hanging + line.strip()
        out.append(line)
        numbers.append(number)
    return "\n".join(out), numbers


def _math_inline(state: StateInline, silent: bool) -> bool:
    source, start = state.src, state.pos
    if source[start] != "$":
        return False
    fence = "$$" if source.startswith("$$", start) else "$"
    begin = start + len(fence)
    end = begin - 1
    while True:
        end = source.find(fence, end + 1)
        if end < 0 or source[end - 1] != "\\":
            break
    content = source[begin:end] if end >= 0 else ""
    tight = fence == "$$" or (
        content == content.strip()
        and not source[end + 1 : end + 2].isdigit()
        and "`" not in content
    )
    if content.strip() and tight:
        if not silent:
            token = state.push("math", "math", 0)
            token.content, token.meta = content, {"display": fence == "$$"}
        state.pos = end + len(fence)
        return True
    if not silent:
        token = state.push("sign", "", 0)
        token.content = fence
        before = source[start - 1 : start]
        lone = fence == "$$" or (_LONE_DOLLAR.match(source, begin) and not before.isalnum())
        token.meta = {"lone": bool(lone)}
    state.pos = begin
    return True


def _html_inline(state: StateInline, silent: bool) -> bool:
    match = _INLINE_HTML.match(state.src, state.pos)
    if not match:
        return False
    if not silent:
        state.push("anchor", "a", 0).content = match[1] or ""
    state.pos = match.end()
    return True


def _escaped_brackets(state: StateCore) -> None:
    r"""A `\[` stands for itself; once joined to the text beside it, it would look like a link."""
    for token in (child for block in state.tokens for child in block.children or []):
        if token.type == "text_special" and token.content in "[]":
            token.type, token.meta = "sign", {"lone": False}


def _line(state: StateBlock, n: int) -> str:
    return state.src[state.bMarks[n] + state.tShift[n] : state.eMarks[n]]


def _math_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    if not _line(state, start).startswith("$$"):
        return False
    for last in range(start, end):
        text = _line(state, last).rstrip()
        if text.endswith("$$") and (last > start or len(text) > 4):
            break
        if not text:
            return False
    else:
        return False
    text = "\n".join(_line(state, n).rstrip() for n in range(start, last + 1))
    if "$$" in text[2:-2]:
        return False
    if not silent:
        token = state.push("math", "math", 0)
        token.block, token.content, token.map = True, text[2:-2], [start, last + 1]
        token.meta = {"display": True}
        state.line = last + 1
    return True


def _definition(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Where a link's name leads; a footnote's text looks like it, and stays to be seen."""
    return not _line(state, start).startswith("[^") and reference(state, start, end, silent)


def _doctest(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    if not _line(state, start).startswith(">>> "):
        return False
    last = start
    while last < end and _line(state, last).strip():
        last += 1
    if not silent:
        token = state.push("fence", "code", 0)
        token.info, token.map = "pycon", [start, last]
        token.content = state.getLines(start, last, state.sCount[start], False) + "\n"
        state.line = last
    return True


def _show_math(self, tokens, i, options, env) -> str:
    shown = tokens[i].meta["html"]
    return f'<div class="display">{shown}</div>\n' if tokens[i].block else shown


def _show_anchor(self, tokens, i, options, env) -> str:
    return f'<a id="{html.escape(tokens[i].content)}"></a>' if tokens[i].content else ""


def _show_code(self, tokens, i, options, env) -> str:
    shown = f"<code>{html.escape(tokens[i].content)}</code>"
    depth = sum((t.type == "link_open") - (t.type == "link_close") for t in tokens[:i])
    attributes = "" if depth else env["page"].name(tokens[i].content)
    return f"<a {attributes}>{shown}</a>" if attributes else shown


def _show_fence(self, tokens, i, options, env) -> str:
    language = tokens[i].info.split()[0] if tokens[i].info.strip() else ""
    return (
        f'<pre class="block"><code>{env["page"].code(tokens[i].content, language)}</code></pre>\n'
    )


def _show_picture(self, tokens, i, options, env) -> str:
    source, text = str(tokens[i].attrGet("src")), html.escape(tokens[i].content)
    if re.match(r"[a-z]+:", source):  # a page loads nothing from elsewhere
        return f'<a href="{html.escape(source)}">{text or html.escape(source)}</a>'
    return f'<img src="{html.escape(source)}" alt="{text}" loading="lazy">'


def _show_heading_end(self, tokens, i, options, env) -> str:
    at = next(t for t in reversed(tokens[:i]) if t.type == "heading_open").attrGet("id")
    link = f'<a class="here" href="#{at}" aria-label="Link to this section">#</a>'
    return f" {link}</{tokens[i].tag}>\n"


def _markdown() -> MarkdownIt:
    md = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    stops = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    md.block.ruler.before("fence", "math_block", _math_block, stops)
    md.block.ruler.at("reference", _definition)
    md.block.ruler.before("blockquote", "doctest", _doctest, {"alt": ["paragraph"]})
    md.core.ruler.before("text_join", "brackets", _escaped_brackets)
    md.inline.ruler.before("escape", "math", _math_inline)
    md.inline.ruler.before("autolink", "anchor", _html_inline)
    for name, rule in {
        "math": _show_math,
        "sign": lambda self, tokens, i, options, env: tokens[i].content,
        "anchor": _show_anchor,
        "code_inline": _show_code,
        "fence": _show_fence,
        "code_block": _show_fence,
        "image": _show_picture,
        "heading_close": _show_heading_end,
        "table_open": lambda *a: '<div class="wide"><table>\n',
        "table_close": lambda *a: "</table></div>\n",
    }.items():
        md.add_render_rule(name, rule)
    return md


_MD = _markdown()
