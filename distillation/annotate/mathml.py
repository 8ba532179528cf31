r"""LaTeX formulas as native MathML: no script and no fonts, and readable aloud."""

from __future__ import annotations

import html
import re
import unicodedata
import xml.etree.ElementTree as ET
from contextlib import suppress

from latex2mathml.commands import MATRICES
from latex2mathml.converter import convert_to_element

_CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "munder": 2, "mover": 2, "mroot": 2}
_FILLED = ("mfrac", "msqrt", "mroot")
_REFUSED = ("href", "style", "class", "id", "src")


class MathError(ValueError):
    """LaTeX that has no MathML."""


def math(latex: str, *, display: bool = False) -> str:
    """Native MathML of a LaTeX formula.

    Raises:
        MathError: an unknown command, a missing argument, braces or environments that do not
            close, a style that Unicode does not have for a letter, nothing to show.
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
    if not "".join(root.itertext()).strip():
        raise MathError("nothing to show (a definition holds in its own formula only)")
    _space_functions(root)
    return ET.tostring(root, encoding="unicode")


def _operator(match: re.Match) -> str:
    r"""One word: `arg\,min` is to latex2mathml a product of letters."""
    return r"\operatorname" + re.sub(r"\\[,:; ]", "", match[1])


def _styled(char: str, style: str) -> str:
    """The character that Unicode has for a bold, … one: browsers know no other `mathvariant`."""
    words = re.sub("-(?!STRUCK|SERIF)", " ", style.upper())
    name = re.sub("^(LATIN|GREEK) | LETTER", "", unicodedata.name(char, ""))
    # Some are older than the block of all others: ℝ, ℒ, ℌ
    for prefix in (f"MATHEMATICAL {words}", words, words.replace("FRAKTUR", "BLACK-LETTER")):
        with suppress(KeyError):
            return unicodedata.lookup(f"{prefix} {name}")
    if char.isascii() and char.isalnum() and style != "italic":
        raise MathError(f"there is no {style} {char}")
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
