"""Notes to HTML: Markdown, mathematics, what is escaped and what is reported."""

from __future__ import annotations

import html
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.annotate.mathml import MathError, math
from distillation.annotate.notes import Page, plain, render


class Notes(Page):
    """A page without a site: links stay as they are, problems are kept."""

    def __init__(self, names: dict[str, str] | None = None):
        self.problems: list[tuple[int, str]] = []
        super().__init__(
            link=lambda href, line: href,
            picture=lambda src, line: src,
            name=lambda text: (names or {}).get(text, ""),
            problem=lambda line, text: self.problems.append((line, text)),
            code=lambda text, language: html.escape(text),
        )


def shown(text: str, page: Page | None = None) -> str:
    return render(text, 1, page or Notes())


def test_inline_and_display_math_become_mathml():
    found = shown("With $T^2$:\n\n$$q_i = \\frac{a}{b}$$\n")
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">' in found
    assert "<mfrac>" in found
    assert "$" not in found


def test_display_math_over_lines_is_not_read_as_markdown():
    found = shown("Text\n$$\na\n= b\n- c\n$$\nmore")
    assert 'display="block"' in found
    assert "<h1" not in found
    assert "<ul" not in found
    assert found.index("Text") < found.index("<math") < found.index("more")


def test_emphasis_within_math_is_no_emphasis():
    assert "<em>" not in shown("$a_i * b_i * c_i$")


@pytest.mark.parametrize(
    "text", ["It costs $5 and $6.", "US$ 5", "`$HOME`", "a \\$x\\$ b", "${A} and $B"]
)
def test_dollars_that_are_money_or_variables_stay(text):
    page = Notes()
    assert "<math" not in shown(text, page)
    assert page.problems == []


@pytest.mark.parametrize(
    "latex",
    [
        r"\foo x",
        r"\frac{1",
        r"\frac{1}",
        r"\frac{}{}",
        r"\sqrt{}",
        "x}",
        r"\left( x",
        "a & b",
        r"\href{x}{y}",
    ],
)
def test_broken_math_is_an_error(latex):
    with pytest.raises(MathError):
        math(latex)


@pytest.mark.parametrize(
    "latex",
    [
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\mathbb{E}_{x \sim p}[\log q]",
        r"\operatorname{softmax}(z / T)",
        r"\text{if } a<b",
        r"\left\| x \right\|_2^2",
        r"\{a, b\}",
        r"\begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases}",
    ],
)
def test_what_papers_write_is_well_formed(latex):
    assert ET.fromstring(math(latex, display=True)).tag.endswith("math")


def test_function_names_are_upright_and_spaced():
    found = math(r"p \log q + \operatorname{softmax}(z)")
    space = '<mspace width="0.17em" />'
    assert f"<mi>p</mi>{space}<mi>log</mi>{space}<mi>q</mi>" in found
    assert '<mi>softmax</mi><mo stretchy="false">(</mo>' in found


@pytest.mark.parametrize("name", ["operatorname{arg\\,min}", "operatorname*{arg\\,min}"])
def test_an_operator_of_two_words_is_one_operator(name):
    found = ET.fromstring(math(rf"\{name}_x f"))
    assert "argmin" in [node.text for node in found.iter()]


@pytest.mark.parametrize(
    ("latex", "char"),
    [(r"\boldsymbol{\theta}", "𝜽"), (r"\mathbf{W1}", "𝐖"), (r"\mathtt{ab}", "𝚊"), (r"\bm{x}", "𝒙")],
)
def test_bold_is_a_character_for_browsers_know_no_other(latex, char):
    found = math(latex)
    assert char in found and "mathvariant" not in found


@pytest.mark.parametrize(
    ("latex", "char"),
    [
        *[(r"\mathbb R", "ℝ"), (r"\mathbb{R}", "ℝ"), (r"\mathbb E_x", "𝔼"), (r"\mathbb{1}", "𝟙")],
        *[(r"\mathcal L", "ℒ"), (r"\mathscr{N}", "𝒩"), (r"\mathfrak H", "ℌ"), (r"\mathsf A", "𝖠")],
    ],
)
def test_a_letter_has_its_style_with_braces_and_without(latex, char):
    assert char in math(latex)


def test_a_style_that_a_digit_does_not_have_is_broken_math():
    with pytest.raises(MathError, match="there is no script 1"):
        math(r"\mathcal{1}")


def test_a_formula_that_shows_nothing_is_broken_math():
    assert ">b<" in math(r"\newcommand{\a}{b} \a")
    with pytest.raises(MathError, match="nothing to show"):
        math(r"\newcommand{\a}{b}")


def test_an_unknown_environment_is_broken_math():
    with pytest.raises(MathError, match="unknown environment foo"):
        math(r"\begin{foo}a\end{foo}")


def test_broken_math_is_reported_with_its_line():
    page = Notes()
    render("One\n\ntwo\nthree $\\foo$\n\n$$\n\\bar{\n$$", 10, page)
    assert [(line, text.split(":")[0]) for line, text in page.problems] == [
        (13, "broken math, unknown command \\foo"),
        (15, "broken math, braces do not match"),
    ]


def test_a_reference_that_is_defined_nowhere_is_reported():
    page = Notes()
    shown("one\ntwo [there][gone]", page)
    assert [(line, text.partition(" is")[0]) for line, text in page.problems] == [
        (2, "dead link: [there][gone]")
    ]


@pytest.mark.parametrize("text", ["[a][b]\n\n[b]: /x", "x[i][j]", "[N, C][0]", "`[a][b]`"])
def test_what_is_no_dead_reference_is_none(text):
    page = Notes()
    shown(text, page)
    assert page.problems == []


@pytest.mark.parametrize("text", [r"\[a\]\[b\]", r"\[a][b]", r"\[^1]"])
def test_an_escaped_bracket_stands_for_itself(text):
    page = Notes()
    assert text.replace("\\", "") in shown(f"see {text}", page)
    assert page.problems == []


def test_a_footnote_is_reported_as_what_it_is():
    page = Notes()
    found = shown("one[^1] `[^a-z]`\ntwo[^long]\n\n[^1]: note\n\n[^long]: A longer note.", page)
    said = "footnotes are not supported: {} (or is it `code`?)"
    assert page.problems == [
        (1, said.format("[^1]")),
        (2, said.format("[^long]")),
        (4, said.format("[^1]")),
        (6, said.format("[^long]")),
    ]
    assert "[^1]: note" in found  # nothing that was written is lost
    assert "<a " not in found


def test_a_formula_that_does_not_close_is_reported():
    page = Notes()
    shown("one\nand $x^2 more", page)
    shown("$$x", page)
    assert [line for line, _ in page.problems] == [2, 1]


def test_hostile_text_is_escaped():
    hostile = "<script>alert(1)</script> <img src=x onerror=alert(1)> **\"&'** `</code><b>`"
    found = shown(hostile)
    assert "<script" not in found
    assert "<img" not in found
    assert "<b>" not in found


def test_hostile_math_is_escaped():
    found = shown(r"$\text{<script>alert(1)</script>}$ $\foo<img>$")
    assert "<script" not in found
    assert "<img" not in found


def test_a_link_cannot_run_a_script():
    assert "href" not in shown("[x](javascript:alert(1))")


def test_pictures_from_elsewhere_are_links():
    found = shown("![badge](https://example.org/x.svg)")
    assert "<img" not in found
    assert '<a href="https://example.org/x.svg">badge</a>' in found


def test_an_anchor_is_a_place_and_a_comment_is_nothing():
    page = Notes()
    found = shown('<a id="kl"></a>\n\n<!-- hidden -->\n', page)
    assert '<a id="kl"></a>' in found
    assert "kl" in page.ids
    assert "hidden" not in found


def test_headings_have_ids_like_those_of_github():
    page = Notes()
    shown("# What `x` is, $T$\n## Same\n## Same\n", page)
    assert [(level, at) for level, at, _ in page.headings] == [
        (1, "what-x-is-t"),
        (2, "same"),
        (2, "same-1"),
    ]


def test_sections_of_arguments_become_lists():
    found = shown(
        "Do.\n\nArgs:\n    a: one\n        more\n    **b: two\n\nReturns:\n    A (n,) tensor."
    )
    assert found.count("<li>") == 2
    assert "<code>a</code>: one\nmore</li>" in found
    assert "<code>**b</code>" in found
    assert "<strong>Returns</strong>\nA (n,) tensor." in found


def test_a_section_needs_no_empty_line_before_it_and_may_hold_lists():
    page = Notes()
    found = shown(
        "Do.\nReturns:\n    A dict:\n        * one\n        * two\n\nArgs:\n    a: [x][nowhere]",
        page,
    )
    assert "<p>Do.</p>\n<p><strong>Returns</strong>\nA dict:</p>\n<ul>\n<li>one</li>" in found
    assert [line for line, _ in page.problems] == [8]


def test_a_section_in_a_block_of_code_is_code():
    assert "Args:\n  a: b" in shown("```text\nArgs:\n  a: b\n```")


@pytest.mark.parametrize("heading", ["Example", "Returns"])
def test_code_in_a_section_keeps_its_columns(heading):
    code = "def f():\n    if x:\n        return 1"
    fenced = "\n".join(f"    {line}" for line in f"```\n{code}\n```".split("\n"))
    assert f"<code>{code}" in shown(f"{heading}:\n{fenced}")


def test_what_an_example_prints_keeps_its_columns():
    assert "[[1],\n [2]]" in shown("Example:\n    >>> f()\n    [[1],\n     [2]]")


def test_an_item_with_a_formula_keeps_its_bullet():
    """Long formulas scroll, and what scrolls has no bullet: a box within the item does."""
    found = shown("* one\n* two $x$")
    assert "<li>one</li>" in found
    assert '<li>\n<p class="tight">two <math' in found


def test_doctests_are_code():
    found = shown(">>> f(1)\n2\n\nText")
    assert "<code>&gt;&gt;&gt; f(1)\n2\n</code>" in found
    assert "<blockquote>" not in found


def test_columns_are_aligned_without_a_style_of_their_own():
    found = shown("| a | b |\n|--:|:-:|\n| 1 | 2 |")
    assert '<th class="right">a</th>' in found and '<td class="center">2</td>' in found
    assert "style" not in found


def test_a_known_name_in_code_is_a_link_unless_it_is_within_one():
    page = Notes({"Loss": 'href="a.html#Loss"'})
    assert '<a href="a.html#Loss"><code>Loss</code></a>' in shown("`Loss`", page)
    assert shown("[`Loss`](b.html)", page).count("<a ") == 1


def test_plain_text_for_the_search():
    assert plain(shown("# A *title*\n\n* one `x`\n* $T^2$ &amp;")) == "A title one x T2 &"


@settings(deadline=None)
@given(text=st.text(alphabet="ab$\\{}^_ \n<>&`*[]()|-=:~#'\"", max_size=60))
def test_whatever_is_written_is_well_formed(text):
    found = shown(text)
    body = found.replace("<br>", "<br/>").replace("<hr>", "<hr/>")
    body = body.replace("<br />", "<br/>").replace("<hr />", "<hr/>")
    if "<img" not in body:
        ET.fromstring(f"<div>{body}</div>")
