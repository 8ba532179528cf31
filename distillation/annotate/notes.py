r"""Notes to HTML: Markdown with `$…$` and `$$…$$` as MathML, doctests and `Args:` lists.

Raw HTML is shown as text, but for `<a id="name"></a>`, which marks a place to link to, and
comments, which are left out. Everything else is escaped.
"""

from __future__ import annotations

import html
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field

from latex2mathml.commands import MATRICES
from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, reference
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

_INLINE_HTML = re.compile(r'<a (?:id|name)="([\w.:-]+)"></a>|<!--.*?-->', re.S)
_LONE_DOLLAR = re.compile(r"[^\s\d${][^`\n]*[\\^]")
_REFERENCE = re.compile(r"(?<![\w\])])\[[^\[\]]+\]\[[A-Za-z][^\[\]]+\]")
_FOOTNOTE = re.compile(r"\[\^[^\s\[\]]+\]")
_SECTION = re.compile(r"(Args|Arguments|Attributes|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_ITEM = re.compile(r"(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*(?: \([^)]*\))?):(?= |$)(.*)")
_CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "munder": 2, "mover": 2, "mroot": 2}
_FILLED = ("mfrac", "msqrt", "mroot")
_REFUSED = ("href", "style", "class", "id", "src")


class MathError(ValueError):
    """LaTeX that has no MathML."""


def math(latex: str, *, display: bool = False) -> str:
    """Native MathML of a LaTeX formula.

    Raises:
        MathError: an unknown command, a missing argument, braces or environments that do not close.
    """
    bare = re.sub(r"\\[\\{}$]", "", latex)
    if bare.count("{") != bare.count("}"):
        raise MathError("braces do not match")
    # latex2mathml knows `split` and `align*`, which look the same as `aligned`
    known = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{split}", latex)
    known = re.sub(r"\\operatorname\*?\s*(\{[^{}]*\})", _operator, known)
    for name in re.findall(r"\\begin\s*\{([^}]*)\}", known):
        if f"\\{name}" not in MATRICES:
            raise MathError(f"unknown environment {name}")
    try:
        root = convert_to_element(known, display="block" if display else "inline")
    except Exception as error:
        raise MathError(re.sub(r"(?<!^)([A-Z])", r" \1", type(error).__name__).lower()) from error
    for node in root.iter():
        node.text = html.unescape(node.text) if node.text else None
        if node.tag in ("mi", "mn") and node.get("mathvariant", "normal") != "normal":
            style = node.attrib.pop("mathvariant")
            node.text = "".join(_styled(char, style) for char in node.text or "")
        text = node.text or ""
        if node.tag == "mi" and text.startswith("\\"):
            raise MathError(f"unknown command {text}")
        if node.tag == "mi" and text == "&":
            raise MathError("& out of place")
        if len(node) != _CHILDREN.get(node.tag, len(node)):
            raise MathError(f"an argument is missing in <{node.tag}>")
        if node.tag in _FILLED and not all("".join(part.itertext()) for part in node):
            raise MathError(f"an argument is empty in <{node.tag}>")
        for name in _REFUSED:
            if node.attrib.pop(name, None) is not None:
                raise MathError(f"{name} is not for formulas")
    _space_functions(root)
    return ET.tostring(root, encoding="unicode")


def _operator(match: re.Match) -> str:
    r"""One word: `arg\,min` is to latex2mathml a product of letters."""
    return r"\operatorname" + re.sub(r"\\[,:; ]", "", match[1])


def _styled(char: str, style: str) -> str:
    """The character that Unicode has for a bold, … one: browsers know no other `mathvariant`."""
    name = re.sub("^(LATIN|GREEK) | LETTER", "", unicodedata.name(char, ""))
    try:
        return unicodedata.lookup(f"MATHEMATICAL {style.replace('-', ' ').upper()} {name}")
    except KeyError:
        return char


def _space_functions(root: ET.Element) -> None:
    """The thin space that TeX sets around `log x`; operator names are upright identifiers."""
    for parent in root.iter():
        if parent.tag not in ("mrow", "math", "mtd"):
            continue
        for node in list(parent):
            if node.tag == "mo" and (node.text or "").isalpha():
                node.tag = "mi"
            if node.tag != "mi" or len(node.text or "") < 2 or not node.text.isalpha():
                continue
            i = list(parent).index(node)
            if i + 1 < len(parent) and parent[i + 1].tag != "mo":
                parent.insert(i + 1, ET.Element("mspace", width="0.17em"))
            if i and parent[i - 1].tag not in ("mo", "mspace"):
                parent.insert(i, ET.Element("mspace", width="0.17em"))


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
    tokens = _MD.parse(_google(text), env)
    now = line
    for i, token in enumerate(tokens):
        now = line + token.map[0] if token.map else now
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


def _google(text: str) -> str:
    """Google's `Args:` sections as Markdown lists, line by line."""
    out: list[str] = []
    base: int | None = None  # indentation of the section's heading
    inner = 0
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip())
        if base is not None and line.strip() and indent <= base:
            base = None
        heading = _SECTION.match(line.strip())
        if base is None and heading and indent == 0:
            base, inner = indent, 0
            out.append(f"**{heading[1]}**")
        elif base is not None and line.strip():
            inner = inner or indent
            item = _ITEM.match(line.strip()) if indent == inner else None
            rest = line[inner:] if indent >= inner else line.strip()
            out.append(f"* `{item[1]}`:{item[2]}" if item else ("  " * (indent > inner)) + rest)
        else:
            out.append(line)
    return "\n".join(out)


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
        token.content = "\n".join(_line(state, n) for n in range(start, last)) + "\n"
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
