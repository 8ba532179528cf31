"""Splitting a file into notes and the code beside them."""

from __future__ import annotations

import ast
from pathlib import Path
from textwrap import dedent

from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.annotate.sections import Section, source_lines, split


def sections(source: str) -> list[tuple[list[str], list[str]]]:
    """(notes, code lines) of each section."""
    source = dedent(source).lstrip("\n")
    lines = source_lines(source)
    found = split(source, ast.parse(source))
    return [([n.text for n in s.notes], [lines[k - 1] for k in s.code(lines)]) for s in found]


def test_a_comment_stands_beside_the_statements_below_it():
    assert sections("""
        # One
        a = 1
        b = 2
        # Two
        c = 3
    """) == [(["One"], ["a = 1", "b = 2"]), (["Two"], ["c = 3"])]


def test_consecutive_comments_are_one_note():
    assert sections("# One\n#\n# $$x$$\na = 1\n") == [(["One\n\n$$x$$"], ["a = 1"])]


def test_the_module_docstring_stands_alone():
    found = sections('r"""\n# Title\n\nText\n"""\n\nimport os\n')
    assert found == [(["# Title\n\nText"], []), ([], ["import os"])]


def test_a_docstring_stands_beside_the_line_that_defines():
    assert sections('''
        @cached
        def f(a,
              b):
            """
            ## Do it

                indented
            """

            return a
    ''') == [(["## Do it\n\n    indented"], ["@cached", "def f(a,", "      b):", "    return a"])]


def test_a_comment_above_a_definition_joins_its_docstring():
    found = sections('# Above\n\ndef f():\n    """Inside"""\n    return 1\n')
    assert found == [(["Above", "Inside"], ["def f():", "    return 1"])]


def test_the_next_definition_without_a_docstring_is_a_section_of_its_own():
    found = sections('def f():\n    """Of f"""\n    return 1\n\ndef g():\n    return 2\n')
    assert found[1] == ([], ["def g():", "    return 2"])


def test_a_note_ends_with_its_block():
    found = sections("with a:\n    # Inside\n    b()\nc()\n")
    assert found == [([], ["with a:"]), (["Inside"], ["    b()"]), ([], ["c()"])]


def test_a_note_ends_with_its_paragraph():
    assert sections("# One\na = 1\n\nb = 2\n") == [(["One"], ["a = 1"]), ([], ["b = 2"])]


def test_code_without_a_note_is_not_taken_apart():
    assert sections("import a\n\nimport b\n\n\nc = 1\n") == [
        ([], ["import a", "", "import b", "", "", "c = 1"])
    ]


def test_an_empty_comment_ends_a_note():
    assert sections("# One\na = 1\n#\nb = 2\n") == [(["One"], ["a = 1"]), ([""], ["b = 2"])]


def test_comments_in_brackets_and_for_tools_and_beside_code_stay_in_the_code():
    source = "x = [\n    # inside\n    1,\n]  # beside\n# noqa: E1\n# type: ignore\ny = '# no'\n"
    assert sections("#!/usr/bin/env python\n" + source) == [
        ([], ["#!/usr/bin/env python", *source.split("\n")[:-1]])
    ]


def test_statements_after_a_string_of_many_lines_keep_their_note():
    found = sections('# One\nx = """\n\n# no note\n"""\ny = 1\n')
    assert found == [(["One"], ['x = """', "", "# no note", '"""', "y = 1"])]


def test_a_docstring_that_shares_its_line_stays_in_the_code():
    assert sections('class E(Exception): "Text"\n') == [([], ['class E(Exception): "Text"'])]


def test_the_lines_of_a_docstring_are_those_of_the_file():
    source = 'def f():\n    """\n\n    First\n    $x$\n    """\n'
    (note,) = split(source, ast.parse(source))[0].notes
    assert (note.line, note.text) == (4, "First\n$x$")


def test_a_docstring_with_a_backslash_that_is_not_raw_is_noticed_and_shown_as_written():
    source = 'def f():\n    """One\n\n    $\\frac{a}{b}$"""\n'
    (note,) = split(source, ast.parse(source))[0].notes
    assert note.unraw == 4
    assert note.text.endswith("$\\frac{a}{b}$")
    raw = source.replace('"""One', 'r"""One')
    assert split(raw, ast.parse(raw))[0].notes[0].unraw == 0


def test_a_docstring_of_several_strings_is_their_sum():
    assert sections('def f():\n    "One " "two"\n')[0][0] == ["One two"]


def test_notebook_cells_begin_a_note():
    found = sections("# %% [markdown]\n# # Title\n# text\n# %%\na = 1\n")
    assert found == [(["\n# Title\ntext\n"], ["a = 1"])]


def assert_every_line_once(source: str, found: list[Section]) -> None:
    numbers = [n for section in found for n, _ in section.lines]
    assert numbers == list(range(1, len(source_lines(source)) + 1))


def test_every_line_of_this_project_appears_once_and_in_order():
    root = Path(__file__).parents[2]
    files = [*root.glob("experiments/**/*.py"), *root.glob("distillation/annotate/*.py")]
    assert len(files) > 20
    for path in files:
        source = path.read_text(encoding="utf-8")
        assert_every_line_once(source, split(source, ast.parse(source)))


BLOCKS = st.sampled_from(
    [
        "# a comment",
        "#",
        "",
        "x = 1  # beside",
        "# noqa",
        'y = """\n# in a string\n\n"""',
        "z = [\n    # in brackets\n    2,\n]",
        '"a string that is no docstring"',
        "a = 1; b = 2",
        "\x0c",
        "é = 'ü\\\n'",
    ]
)


@st.composite
def python(draw, depth=0):
    """Python of nested blocks, definitions, comments and docstrings."""
    pieces = []
    for _ in range(draw(st.integers(0, 4))):
        if depth < 3 and draw(st.booleans()):
            head = draw(
                st.sampled_from(
                    ["def f(a):", "@d\ndef g(\n    a,\n):", "class C:", "if x:", "async def h():"]
                )
            )
            doc = draw(
                st.sampled_from(
                    ["", '"""doc"""\n', 'r"""\n$x$\n\n  y\n"""\n', '# c\n"doc"  # d\n', "'\\\n'\n"]
                )
            )
            body = doc + draw(python(depth + 1)) + "pass\n"
            # Indent statements, but nothing within strings: their lines are code all the same
            pieces.append(head + "\n" + "".join(f"    {t}\n" for t in body.split("\n")[:-1]))
        else:
            pieces.append(draw(BLOCKS) + "\n")
    return "".join(pieces)


@settings(deadline=None)
@given(source=python())
def test_every_line_appears_exactly_once_and_in_order(source):
    assert_every_line_once(source, split(source, ast.parse(source)))


@settings(deadline=None)
@given(source=python())
def test_no_line_of_code_is_hidden_but_notes_and_blanks(source):
    lines = source_lines(source)
    for section in split(source, ast.parse(source)):
        shown = set(section.code(lines))
        for n, is_code in section.lines:
            assert (n in shown) or not is_code or not lines[n - 1].strip()
