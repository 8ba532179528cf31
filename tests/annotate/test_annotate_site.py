"""`distill annotate`: what is written, and what is reported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distillation.annotate import annotate
from distillation.commands.annotate import annotate as command
from distillation.errors import ConfigError

DISTILL = [sys.executable, "-m", "distillation.cli"]
ROOT = Path(__file__).parents[2]
STYLE = ROOT / "distillation" / "annotate" / "site_files" / "style.css"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write({path: text})` puts a folder of experiments where the working directory is."""
    monkeypatch.chdir(tmp_path)

    def put(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return put


def problems(folder: Path) -> list[str]:
    return [str(p) for p in annotate([folder], Path("site"))[1]]


def test_a_package_is_a_folder_with_an_index(write):
    root = write({"pkg/__init__.py": '"""# A package"""\n', "pkg/sub/a.py": "x = 1\n"})
    assert annotate([root / "pkg"], root / "site") == (2, [])
    for page in ("index.html", "pkg/index.html", "pkg/sub/a.html", "pkg/sub/index.html"):
        assert (root / "site" / page).exists()
    assert "<h1" in (root / "site" / "pkg" / "index.html").read_text()


def test_a_part_of_a_package_keeps_its_place(write):
    root = write({"pkg/__init__.py": "", "pkg/sub/__init__.py": "", "pkg/sub/a.py": "x = 1\n"})
    annotate([root / "pkg" / "sub" / "a.py"], root / "site")
    assert (root / "site" / "pkg" / "sub" / "a.html").exists()


def test_a_folder_that_is_no_package_and_lies_elsewhere(write, tmp_path_factory):
    write({})
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "train.py").write_text("import model\nmodel.f()\n")
    (folder / "model.py").write_text("def f():\n    pass\n")
    assert annotate([folder], Path("site")) == (2, [])
    page = (Path("site") / folder.name / "train.html").read_text()
    assert "model.html#f" in page


def test_names_link_to_their_definitions_on_other_pages(write):
    root = write(
        {
            "pkg/__init__.py": "",
            "pkg/a.py": "class A:\n    rate = 1\n",
            "pkg/sub/b.py": "from pkg.a import A\nA.rate\n",
        }
    )
    annotate([root / "pkg"], root / "site")
    page = (root / "site/pkg/sub/b.html").read_text()
    assert 'href="../a.html#A"' in page
    assert 'href="../a.html#L2"' in page
    target = (root / "site/pkg/a.html").read_text()
    assert 'id="A"' in target
    assert 'id="L2"' in target


def test_a_heading_takes_no_id_of_the_pages_own(write):
    root = write({"exp/a.py": '"""\n# A\n\n## Page content\n\n## Page toc\n"""\n'})
    annotate([root / "exp"], root / "site")
    ids = re.findall(r' id="([^"]+)"', (root / "site/exp/a.html").read_text())
    assert len(ids) == len(set(ids)) and {"page-content-1", "page-toc-1"} <= set(ids)


def test_links_are_checked_with_file_and_line(write):
    root = write(
        {
            "exp/a.py": '"""\n[b](b.html) [b](b.html#there) [a](#here)\n<a id="here"></a>\n'
            '[gone](c.html)\n[no](b.html#nowhere) [self](#nothing)\n"""\n',
            "exp/b.py": '"""<a id="there"></a>"""\n',
        }
    )
    assert problems(root / "exp") == [
        "exp/a.py:4: dead link: no page exp/c.html on the site",
        "exp/a.py:5: dead link: no #nothing on exp/a.html",
        "exp/a.py:5: dead link: no #nowhere on exp/b.html",
    ]


def test_links_to_sources_lead_to_their_pages(write):
    root = write(
        {
            "README.md": "# Hi\n\n[a](exp/a.py) [exp](exp/) [doc](docs/x.md#part)\n",
            "exp/a.py": "x = 1\n",
            "docs/x.md": "# X\n\n## Part\n",
        }
    )
    assert annotate([root], root / "site") == (3, [])
    page = (root / "site" / "index.html").read_text()
    for href in ("exp/a.html", "exp/index.html", "docs/x.html#part"):
        assert f'href="{href}"' in page


def test_files_that_pages_link_to_come_along(write):
    root = write(
        {"a.md": "# A\n\n![p](p.svg) [licence](LICENSE)\n", "p.svg": "<svg/>", "LICENSE": "x"}
    )
    assert annotate([root / "a.md"], root / "site")[1] == []
    assert (root / "site" / "p.svg").read_text() == "<svg/>"
    assert (root / "site" / "LICENSE").exists()


def test_docstrings_that_should_be_raw_and_broken_math_have_file_and_line(write):
    root = write({"exp/a.py": 'def f():\n    """\n    $\\alpha$ and\n    $\\foo$\n    """\n'})
    assert problems(root / "exp") == [
        'exp/a.py:3: a docstring with a backslash must be raw: r"""…"""',
        "exp/a.py:4: broken math, unknown command \\foo: \\foo",
    ]


def test_a_file_that_is_no_python_is_reported_and_the_others_are_shown(write):
    root = write({"exp/a.py": "x = 1\n", "exp/b.py": "x = 1\ndef (\n", "exp/c.md": "# C\n"})
    (root / "exp" / "d.md").write_bytes(b"\xff\xfe\xff")
    count, found = annotate([root / "exp"], root / "site")
    assert count == 2
    python, text = map(str, found)
    assert python == "exp/b.py:2: no Python: invalid syntax"
    assert text.startswith("exp/d.md:1: no UTF-8 text")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (b"x = 1\r\n# at $T$\r\ny = 2\r\n", "at <math"),
        (b"\xef\xbb\xbf# a mark of order\nx = 1", "a mark of order"),
        (b'# -*- coding: latin-1 -*-\n# caf\xe9\nx = "\xe9"\n', "café"),
        (b"def f():\n\tif x:\n\t\t# after tabs\n\t\treturn 1\n\x0c\ny = 2\n", "after tabs"),
        (b"", "exp.a"),
        (b"# only this", "only this"),
    ],
)
def test_files_of_other_systems(write, source, shown):
    root = write({"exp/a.py": ""})
    (root / "exp" / "a.py").write_bytes(source)
    assert annotate([root / "exp"], root / "site") == (1, [])
    assert shown.rpartition(".")[2] in (root / "site/exp/a.html").read_text(encoding="utf-8")


def test_names_of_files_are_quoted_in_addresses(write):
    odd = 'a "b" #c 100%.py'
    root = write({f"exp/{odd}": "x = 1\n", "exp/b.md": '# B\n\n[a](<a "b" %23c 100%25.py>)\n'})
    assert annotate([root / "exp"], root / "site") == (2, [])
    page = (root / "site/exp/b.html").read_text()
    assert page.count('href="a%20%22b%22%20%23c%20100%25.html"') >= 2


def test_hostile_source_is_escaped(write):
    hostile = "</pre><script>alert(1)</script>"
    root = write(
        {
            "exp/a.py": f'"""# {hostile}"""\n# {hostile}\nx = "{hostile}"  # {hostile}\n',
            "exp/b.md": f"# {hostile}\n\n```{hostile}\n{hostile}\n```\n",
        }
    )
    annotate([root / "exp"], root / "site", title=hostile)
    for page in (root / "site").rglob("*.html"):
        assert re.findall(r"<script[^>]*>", page.read_text()) == [
            tag for tag in re.findall(r"<script[^>]*>", page.read_text()) if 'site.js"' in tag
        ]
        assert "</pre><script" not in page.read_text()


def test_the_search_index_has_headings_and_text(write):
    function = 'def f():\n    """\n    ## Soft targets\n    text\n    """\n'
    root = write({"exp/a.py": f'"""# Top\n\nIntro"""\n\n{function}'})
    annotate([root / "exp"], root / "site")
    script = (root / "site/_annotate/search.js").read_text()
    index = json.loads(script.removeprefix("window.searchIndex = ").rstrip(";\n"))
    assert index == [
        ["exp/a.html", "Top", "top", "Top", "Intro"],
        ["exp/a.html", "Top", "soft-targets", "Soft targets", "text"],
    ]


def test_private_names_are_not_in_the_search_index(write):
    root = write({"exp/a.py": 'def f():\n    """One"""\ndef _g():\n    """Two"""\n    # Three\n'})
    annotate([root / "exp"], root / "site")
    script = (root / "site/_annotate/search.js").read_text()
    assert "One" in script
    assert "Two" not in script and "Three" not in script


def test_no_name_of_python_is_the_id_of_a_part_of_the_page(write):
    page = (STYLE.parent / "page.html").read_text()
    parts = set(re.findall(r'getElementById\("([^"]*)', (STYLE.parent / "site.js").read_text()))
    assert parts <= set(re.findall(r' id="([^"]*)"', page))
    names = [part.removeprefix("page-") for part in parts]
    root = write({"exp/a.py": "".join(f"def {name}(): pass\n" for name in names)})
    annotate([root / "exp"], root / "site")
    ids = re.findall(r' id="([^"]*)"', (root / "site/exp/a.html").read_text())
    assert parts | set(names) <= set(ids)
    assert len(ids) == len(set(ids))
    assert not [part for part in re.findall(r' id="([^"]*)"', page) if part.isidentifier()]


@pytest.mark.parametrize(
    ("source", "levels"),
    [
        ("class A:\n    x = 1\n\ndef f():\n    pass\n", "122"),
        ('class A:\n    x = 1\n\ndef f():\n    """## Part"""\n\ndef g():\n    pass\n', "1223"),
    ],
)
def test_headings_leave_out_no_level(write, source, levels):
    root = write({"exp/a.py": source})
    annotate([root / "exp"], root / "site")
    page = (root / "site/exp/a.html").read_text().replace('<h2 id="page-toc">', "")
    assert "".join(re.findall(r"<h(\d)", page)) == levels


def test_breadcrumbs_call_a_module_by_its_last_name(write):
    root = write({"pkg/__init__.py": "", "pkg/sub/__init__.py": "", "pkg/sub/a.py": "x = 1\n"})
    annotate([root / "pkg"], root / "site", title="Mine")
    for page, shown in (("a", ["pkg", "sub", "a"]), ("index", ["pkg", "sub"])):
        text = (root / f"site/pkg/sub/{page}.html").read_text()
        crumbs = re.search(r'<ol class="crumbs">(.*?)</ol>', text)[1]
        items = [re.sub("<[^>]+>", "", item) for item in crumbs.split("</li>")[:-1]]
        assert items[-len(shown) :] == shown


def test_pages_that_are_gone_leave_the_site_and_other_files_are_never_touched(write):
    root = write({"exp/a.py": "x = 1\n", "exp/b.py": "y = 1\n"})
    annotate([root / "exp"], root / "site")
    (root / "site" / "CNAME").write_text("mine")
    (root / "exp" / "b.py").unlink()
    annotate([root / "exp"], root / "site")
    assert not (root / "site/exp/b.html").exists()
    assert (root / "site/CNAME").exists()
    with pytest.raises(ConfigError, match="not empty"):
        annotate([root / "exp"], root / "exp")


@pytest.mark.parametrize("out", ["taken", "taken/site"])
def test_a_file_where_the_site_shall_go_is_called_one(write, out):
    root = write({"exp/a.py": "x = 1\n", "taken": ""})
    with pytest.raises(ConfigError, match=r"taken is a file"):
        annotate([root / "exp"], root / out)


def test_the_site_does_not_show_itself_nor_hidden_or_installed_files(write):
    root = write(
        {
            "a.py": "x = 1\n",
            ".hidden/b.py": "x",
            "__pycache__/c.py": "x",
            "env/pyvenv.cfg": "",
            "env/d.py": "x",
            "site/_annotate/files.json": "[]",
            "site/e.md": "# no",
        }
    )
    assert annotate([root], root / "site") == (1, [])


def test_nothing_to_show_is_an_error(write):
    root = write({"exp/a.txt": "no"})
    with pytest.raises(ConfigError, match=r"no \.py, \.md or \.ipynb file"):
        annotate([root / "exp"], root / "site")
    with pytest.raises(ConfigError, match="nothing at"):
        annotate([root / "gone"], root / "site")


def test_nothing_that_can_be_read_is_an_error_that_says_why(write):
    root = write({"exp/a.py": "x = (\n"})
    with pytest.raises(ConfigError, match=r"exp/a\.py:1: no Python: '\(' was never closed"):
        annotate([root / "exp"], root / "site")


def test_two_files_that_would_be_one_page_are_an_error(write):
    root = write({"exp/__init__.py": "x = 1\n", "exp/index.md": "# A\n"})
    with pytest.raises(ConfigError, match=r"would both be exp/index\.html"):
        annotate([root / "exp"], root / "site")


def test_a_program_and_the_text_beside_it_have_a_page_each(write):
    root = write({"exp/a.py": "# [text](a.md)\nx = 1\n", "exp/a.md": "# A\n\n[code](a.py)"})
    assert annotate([root / "exp"], root / "site") == (2, [])
    assert 'href="a.md.html"' in (root / "site/exp/a.html").read_text()
    assert 'href="a.html"' in (root / "site/exp/a.md.html").read_text()


def test_what_an_editor_leaves_in_a_folder_is_left_out(write):
    root = write({"exp/a.py": "x = 1\n", "exp/._a.py": "\0"})
    (root / "exp" / ".#a.py").symlink_to("me@host.1234")
    assert annotate([root / "exp"], root / "site") == (1, [])


def test_a_file_that_cannot_be_read_is_reported(write):
    root = write({"exp/a.py": "x = 1\n"})
    (root / "exp" / "b.py").symlink_to("gone.py")
    assert problems(root / "exp") == ["exp/b.py:1: cannot be read: No such file or directory"]


def test_an_expression_too_deep_for_python_is_reported(write):
    deep, deeper = (f"x = {'1 + ' * n}1\n" for n in (900, 9000))
    root = write({"exp/deep.py": f"# Deep\n{deep}", "exp/deeper.py": deeper})
    assert [text.partition(": ")[0] for text in problems(root / "exp")] == [
        "exp/deep.py:1",
        "exp/deeper.py:1",
    ]
    assert "Deep" in (root / "site/exp/deep.html").read_text()
    assert not (root / "site/exp/deeper.html").exists()


def test_strict_fails_and_says_where(write, capsys):
    write({"exp/a.py": "# $\\foo$\nx = 1\n"})
    command([Path("exp")], out=Path("site"), strict=False)
    with pytest.raises(SystemExit) as ended:
        command([Path("exp")], out=Path("site"), strict=True)
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "exp/a.py:1: broken math" in said.err
    assert "1 page in site, 1 problem" in said.out


def test_a_list_of_pages_is_read_from_its_own_folder(write, capsys):
    write({"docs/site.yaml": "title: Mine\nroot: ..\npages: [exp, a.md]\n", "a.md": "# A\n"})
    write({"exp/x.py": "x = 1\n", "other/y.py": "y = 1\n"})
    command([Path("docs/site.yaml")], out=Path("site"))
    assert capsys.readouterr().out == "2 pages in site\n"
    assert "· Mine</title>" in Path("site/exp/x.html").read_text()
    write({"docs/site.yaml": "pages: [exp]\ntitel: x\n"})
    with pytest.raises(ConfigError, match="did you mean 'title'"):
        command([Path("docs/site.yaml")], out=Path("site"))


def test_the_experiments_are_shown_in_ten_seconds_without_a_problem(tmp_path):
    started = os.times()
    done = subprocess.run(
        [*DISTILL, "annotate", "experiments", "--out", str(tmp_path / "site"), "--strict"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ended = os.times()  # of processor time, so that a busy machine does not matter
    used = ended.children_user - started.children_user
    assert used + ended.children_system - started.children_system < 10
    page = (tmp_path / "site/experiments/cifar10/distill.html").read_text()
    source = (ROOT / "experiments/cifar10/distill.py").read_text()
    assert page.count("<math") == len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", source))
    assert "broken" not in page


def luminance(colour: str) -> float:
    parts = colour.lstrip("#")
    parts = parts if len(parts) == 6 else "".join(2 * c for c in parts)
    linear = [int(parts[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [1, 2], ids=["light", "dark"])
def test_every_text_can_be_read_in_both_themes(theme):
    """WCAG AA: a contrast of 4.5."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);", STYLE.read_text())
    colours = {pair[0]: pair[theme] for pair in pairs}
    texts = [n for n in colours if n.startswith("tok-") or n in ("ink", "quiet", "accent", "bad")]
    assert len(texts) == 12
    for text in texts:
        for ground in ("paper", "code"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    # What a name can be coloured in, when it is lit up
    for text in ("ink", "tok-f", "tok-b", "tok-d", "tok-k"):
        assert contrast(colours[text], colours["mark"]) >= 4.5, (text, "mark")
    for ground in ("paper", "code"):  # WCAG 1.4.11, of what can be used
        assert contrast(colours["edge"], colours[ground]) >= 3, ground
