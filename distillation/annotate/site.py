"""Many files as one site: what belongs to it, links between its pages, navigation and search."""

from __future__ import annotations

import ast
import html
import json
import os
import posixpath
import re
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from urllib.parse import quote, unquote

from distillation.annotate import navigation
from distillation.annotate.names import Module, Project, Use
from distillation.annotate.notebook import notebook_page, read
from distillation.annotate.notes import Page, plain
from distillation.annotate.page import highlight, markdown_page, python_page
from distillation.annotate.sections import source_lines
from distillation.annotate.uses import uses
from distillation.errors import ConfigError

_KINDS = (".py", ".md", ".ipynb")
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}
_SHOWN = ", ".join(_KINDS[:-1]) + f" or {_KINDS[-1]}"
_OWN = "_annotate"  # the site's folder of style, script and search index
_RECORD = f"{_OWN}/files.json"


@dataclass(frozen=True, order=True)
class Problem:
    """Something that a reader would stumble over, at a line of a source file."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass
class File:
    """A source file, and the page `out` (its address within the site) that is made of it."""

    path: Path
    out: str
    source: str
    module: Module | None = None
    body: tuple[str, str] = ("", "")
    words: list = field(default_factory=list)
    notes: Page | None = None

    @property
    def title(self) -> str:
        """The first heading, in HTML."""
        found = [text for level, _, text in self.notes.headings if level == 1]
        return found[0] if found else html.escape(posixpath.basename(self.out)[:-5])


def annotate(
    sources: Sequence[Path], out: Path, *, title: str = "", root: Path | None = None
) -> tuple[int, list[Problem]]:
    """Write the site of `sources` (files and folders) into folder `out`.

    A page lies where its file lies from the folder that its package is imported from; other files,
    from `root` (the working directory), and those outside of it from their SRC's folder.

    Returns:
        The number of pages, and the problems in order: broken math, links that lead nowhere,
        footnotes, docstrings that should be raw, files that are no Python.

    Raises:
        ConfigError: nothing to show, or nothing that can be read; two files that would be the
            same page.
    """
    site = _Site(out, title)
    site.gather(sources, (root or Path.cwd()).resolve())
    site.render()
    site.check()
    site.write()
    return len(site.files), sorted(set(site.problems))


class _Site:
    def __init__(self, out: Path, title: str) -> None:
        self.out, self.title = out, title
        self.files: dict[str, File] = {}
        self.problems: list[Problem] = []
        self.links: list[tuple[File, int, str, str]] = []  # from, line, page, id
        self.copies: dict[str, Path] = {}
        self.project = Project([])
        self.of: dict[str, File] = {}

    def problem(self, path: Path, line: int, text: str) -> None:
        shown = os.path.relpath(path)
        self.problems.append(Problem(str(path) if shown.startswith("..") else shown, line, text))

    def gather(self, sources: Sequence[Path], root: Path) -> None:
        for given in sources:
            if not given.exists():
                raise ConfigError(f"nothing at {given}; SRC is a folder or a file, of {_SHOWN}")
            base = given.resolve()
            for path in _sources(base, self.out.resolve()):
                if not any(f.path == path for f in self.files.values()):
                    self.add(path, root if path.is_relative_to(root) else base.parent)
        for file in list(self.files.values()):
            if file.out.endswith("README.html"):
                index = file.out[: -len("README.html")] + "index.html"
                if index not in self.files:
                    file.out = index
        self.files = {file.out: file for file in self.files.values()}
        if not self.files:
            if self.problems:
                said = "; ".join(map(str, self.problems))
                raise ConfigError(f"no file of these can be shown: {said}")
            shown = ", ".join(map(str, sources))
            raise ConfigError(f"no {_SHOWN} file in {shown}; SRC is a folder or a file")
        self.of = {f.module.name: f for f in self.files.values() if f.module}
        self.project = Project([f.module for f in self.of.values()])

    def add(self, path: Path, root: Path) -> None:
        while (root / "__init__.py").exists():
            root = root.parent
        top = path.parent
        while (top / "__init__.py").exists():
            top = top.parent
        if path.suffix == ".py" and not path.is_relative_to(root):
            root = top
        out = path.relative_to(root).with_suffix(".html")
        if path.name == "__init__.py":
            out = out.with_name("index.html")
        if path.suffix == ".ipynb" or (path.suffix == ".md" and path.with_suffix(".py").exists()):
            out = out.with_name(f"{path.name}.html")  # often there is a .py of its name
        file = File(path, out.as_posix(), "")
        try:
            if path.suffix == ".py":
                with tokenize.open(path) as stream:
                    file.source = stream.read()
                name = ".".join(path.relative_to(top).with_suffix("").parts)
                tree = ast.parse(file.source)
                package = path.name == "__init__.py"
                file.module = Module(name.removesuffix(".__init__"), tree, package)
            else:
                file.source = path.read_text(encoding="utf-8-sig")
                if path.suffix == ".ipynb":
                    read(file.source)
        except OSError as error:
            self.problem(path, 1, f"cannot be read: {error.strerror}")
            return
        except RecursionError:
            self.problem(path, 1, "an expression is nested too deeply to be read")
            return
        except (SyntaxError, UnicodeDecodeError, ValueError) as error:
            kind = "no notebook" if path.suffix == ".ipynb" else "no Python"
            kind = "no UTF-8 text" if isinstance(error, UnicodeDecodeError) else kind
            text = f"{kind}: {getattr(error, 'msg', error)}"
            self.problem(path, getattr(error, "lineno", None) or 1, text)
            return
        other = self.files.get(file.out)
        if other:
            raise ConfigError(f"{path} and {other.path} would both be {file.out}; rename one")
        self.files[file.out] = file

    def render(self) -> None:
        reserved = {navigation.TOC, *re.findall(r'id="([^"]+)"', _file("page.html").decode())}
        for file in self.files.values():
            file.notes = Page(
                link=lambda href, line, f=file: self.link(f, href, line),
                picture=lambda href, line, f=file: self.link(f, href, line),
                name=lambda text, f=file: self.name(f, text),
                problem=lambda line, text, f=file: self.problem(f.path, line, text),
                code=highlight,
                ids=reserved.copy(),
            )
            if file.path.suffix == ".ipynb":
                self.copies[file.out.removesuffix(".html")] = file.path
                file.body, file.words = notebook_page(file.source, file.notes, file.path.name)
                continue
            if file.module is None:
                file.body, file.words = markdown_page(file.source, file.notes)
                continue
            file.body, file.words = python_page(
                file.source, file.module.tree, self.marked(file), file.notes, file.module.name
            )

    def marked(self, file: File) -> list[tuple[Use, str]]:
        """The uses of names in a Python file, each with the attributes of its element."""
        numbers: dict[str, int] = {}
        try:
            found = uses(self.project, file.module, source_lines(file.source))
        except RecursionError:
            self.problem(file.path, 1, "an expression is nested too deeply to link its names")
            found = []
        return [
            (use, self.attributes(file, use, numbers.setdefault(use.meaning, len(numbers))))
            for use in found
        ]

    def attributes(self, file: File, use: Use, number: int) -> str:
        """Of the element around a name; locals have no link, they are lit up only."""
        where = self.where(file, use.meaning)
        title = html.escape(re.sub(r"\.<([^>]+)>", r" · \1", use.meaning))
        href = f'href="{html.escape(where)}" ' if where else ""
        return f'{href}data-n="{number}" data-t="{title}"'

    def where(self, file: File, meaning: str) -> str:
        """The address of a definition, as seen from `file`'s page, or ""."""
        _, module, name = self.project.find(meaning)
        if module is None:
            return ""
        target = self.of[module.name]
        at = ""
        if name:
            at = f"#{name}" if name in module.sections else f"#L{module.defined[name]}"
        away = target is not file or not at
        return (navigation.relative(target.out, file.out) if away else "") + at

    def name(self, file: File, text: str) -> str:
        """Attributes of the link for a name in a note's code, or ""."""
        if not re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", text):
            return ""
        first, _, rest = text.removesuffix("()").partition(".")
        own = file.module and self.project.dotted(ast.Name(first), file.module)
        # A name that this file does not know is that of a class, or it is a variable
        known = self.project.public.get(first) if not first.islower() or "(" in text else None
        path = own or known or first
        where = self.where(file, f"{path}.{rest}" if rest else path)
        return f'href="{html.escape(where)}"' if where else ""

    def link(self, file: File, href: str, line: int) -> str:
        """The address to write for a link in a note; what it leads to is checked at the end."""
        if href.startswith("attachment:"):
            self.problem(file.path, line, f"dead link: {href} is inside the notebook, no file")
        if re.match(r"[a-zA-Z][\w+.-]*:|//", href):
            return href
        path, _, at = href.partition("#")
        path, at = unquote(path.partition("?")[0]), unquote(at)
        page = file.out
        if path:
            page = posixpath.normpath(posixpath.join(posixpath.dirname(file.out), path))
            beside = (file.path.parent / path).resolve()
            if page not in self.files:
                found = next((f for f in self.files.values() if f.path == beside), None)
                index = posixpath.normpath(f"{page}/index.html")
                if found:
                    page = found.out
                elif index in self.files or beside.is_dir():
                    page = index
                elif beside.is_file() and not page.startswith((".", "/")):
                    self.copies[page] = beside
        self.links.append((file, line, page, at))
        shown = "" if page == file.out and at else navigation.relative(page, file.out)
        return shown + (f"#{quote(at)}" if at else "")

    def check(self) -> None:
        """Report links whose page or place is not there."""
        for file, line, page, at in self.links:
            target = self.files.get(page)
            if target is None:
                if page not in self.copies and not navigation.has_folder(self.files, page):
                    self.problem(file.path, line, f"dead link: no page {page} on the site")
            elif at and at not in target.notes.ids:
                self.problem(file.path, line, f"dead link: no #{at} on {page}")

    def write(self) -> None:
        pages = navigation.pages(self.files, self.title)
        template = Template(_file("page.html").decode())
        written: dict[str, str | bytes] = {}
        for out, parts in pages.items():
            up = "../" * out.count("/")
            written[out] = template.substitute(parts, up=up, own=up + _OWN)
        for name in ("style.css", "site.js", "icon.svg"):
            written[f"{_OWN}/{name}"] = _file(name)
        index = [
            [quote(file.out), plain(file.title), *entry]
            for file in self.files.values()
            for entry in file.words
            if not re.search(r"(^|\.)_(?!_)", entry[0])  # names that are private
        ]
        packed = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
        written[f"{_OWN}/search.js"] = f"window.searchIndex = {packed};\n"
        for name, source in self.copies.items():
            written[name] = source.read_bytes()
        _write(self.out, written)


def _file(name: str) -> bytes:
    return (resources.files("distillation.annotate") / "site_files" / name).read_bytes()


def _write(out: Path, written: dict[str, str | bytes]) -> None:
    """Write all files, and remove those of an earlier site that are no longer part of it."""
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(f"{place} is a file; name a folder as --out")
    record = out / _RECORD
    if record.exists():
        for name in set(json.loads(record.read_text(encoding="utf-8"))) - set(written):
            (out / name).unlink(missing_ok=True)
    elif out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and no site of ours; name another --out")
    for name, content in {**written, _RECORD: json.dumps(sorted(written))}.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _sources(base: Path, out: Path) -> Iterable[Path]:
    if base.is_file():
        if base.suffix not in _KINDS:
            raise ConfigError(f"{base} is no {_SHOWN} file")
        yield base
        return
    for folder, names, files in os.walk(base):
        here = Path(folder)
        names[:] = sorted(
            n
            for n in names
            if n not in _SKIPPED
            and not n.startswith(".")
            and here / n != out
            and not (here / n / "pyvenv.cfg").exists()
        )
        shown = (n for n in sorted(files) if n.endswith(_KINDS) and not n.startswith("."))
        yield from (here / n for n in shown)
