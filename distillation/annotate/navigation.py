"""What is around a page: sidebar, breadcrumbs, table of contents, neighbours, lists of pages."""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from distillation.annotate.notes import plain

TOC = "page-toc"  # the id of a table of contents


@dataclass
class Folder:
    """A folder of the site: its own page's file, when there is one, and what is in it."""

    path: str
    page: Any = None
    folders: dict[str, Folder] = field(default_factory=dict)
    files: list[Any] = field(default_factory=list)

    @property
    def out(self) -> str:
        return posixpath.join(self.path, "index.html")

    @property
    def title(self) -> str:
        """The heading of its page when it is more than the module's name, else its own name."""
        name = html.escape(posixpath.basename(self.path))
        return label(self.page) if self.page and not _is_name(self.page) else name


def pages(files: Mapping[str, Any], title: str) -> dict[str, dict[str, str]]:
    """The template's parts for each page, also for the lists of folders that have no page."""
    root = _tree(files)
    if title:
        site = html.escape(title)
    elif root.page:
        site = root.page.title
    else:
        first = next(iter(root.folders.values()), None)
        site = first.title if first and len(root.folders) == 1 and not root.files else "Contents"
    has_home = bool(root.page or root.files or len(root.folders) > 1)
    folders = {f.out: f for f in _walk(root)}
    order = _reading_order(root)
    result = {}
    for i, out in enumerate(order):
        file, folder = files.get(out), folders.get(out)
        name = file.title if file else (folder.title or site)
        intro, rest = file.body if file else (f'<div class="prose"><h1>{name}</h1></div>', "")
        listing = _listing(folder, out) if folder else ""
        headings = [h for h in file.notes.headings if 1 < h[0] < 5] if file else []
        shown = plain(site) if out == "index.html" else f"{plain(name)} · {plain(site)}"
        result[out] = {
            "title": html.escape(shown),
            "site": plain(site) and html.escape(plain(site)),
            "intro": intro,
            "toc": _toc(headings),
            "rest": rest + listing,
            "crumbs": _crumbs(folders, out, label(file) if file else name, plain(site), has_home),
            "sidebar": _sidebar(root, out),
            "previous": _neighbour(order[i - 1], files, folders, out, "prev") if i else "",
            "next": _neighbour(order[i + 1], files, folders, out, "next")
            if i + 1 < len(order)
            else "",
        }
    return result


def has_folder(files: Mapping[str, Any], page: str) -> bool:
    """Whether `page` is the list that a folder without a page of its own gets."""
    folder = page.removesuffix("index.html")
    return folder != page and any(out.startswith(folder) for out in files)


def label(file: Any) -> str:
    """A page's title where space is scarce: of a module without a heading, its last name."""
    return f"<code>{file.module.name.rpartition('.')[2]}</code>" if _is_name(file) else file.title


def _is_name(file: Any) -> bool:
    return file.module is not None and file.title == f"<code>{html.escape(file.module.name)}</code>"


def _tree(files: Mapping[str, Any]) -> Folder:
    root = Folder("")
    for out, file in files.items():
        here = root
        *parents, name = out.split("/")
        for part in parents:
            path = posixpath.join(here.path, part)
            here = here.folders.setdefault(part, Folder(path))
        if name == "index.html":
            here.page = file
        else:
            here.files.append(file)
    return root


def _walk(folder: Folder):
    yield folder
    for inner in folder.folders.values():
        yield from _walk(inner)


def _reading_order(folder: Folder) -> list[str]:
    """A folder's page, the folders in it, then its files."""
    inner = [out for f in folder.folders.values() for out in _reading_order(f)]
    return [folder.out, *inner, *(f.out for f in folder.files)]


def _link(target: str, page: str, text: str, extra: str = "") -> str:
    here = ' aria-current="page"' if target == page else ""
    return f'<a href="{html.escape(relative(target, page))}"{here}{extra}>{text}</a>'


def relative(target: str, page: str) -> str:
    """The address of page `target` as seen from `page`, quoted for a URL."""
    return quote(posixpath.relpath(target, posixpath.dirname(page) or "."))


def _sidebar(folder: Folder, page: str) -> str:
    items = []
    for inner in folder.folders.values():
        is_open = " open" if page.startswith(f"{inner.path}/") else ""
        name = html.escape(posixpath.basename(inner.path))
        items.append(
            f"<li><details{is_open}><summary>{name}</summary>{_sidebar(inner, page)}</details></li>"
        )
    items += [f"<li>{_link(f.out, page, label(f))}</li>" for f in folder.files]
    own = folder.title or "Contents"
    return f"<ul><li>{_link(folder.out, page, own)}</li>{''.join(items)}</ul>"


def _crumbs(folders: Mapping[str, Folder], page: str, name: str, site: str, has_home: bool) -> str:
    parts, items = page.split("/")[:-1], [_link("index.html", page, html.escape(site))]
    if not has_home:
        items = []  # a site of one folder is called like it
    for n in range(1, len(parts) + 1):
        target = "/".join([*parts[:n], "index.html"])
        if target != page:
            items.append(_link(target, page, html.escape(parts[n - 1])))
    if page != "index.html":
        items.append(f'<span aria-current="page">{name}</span>')
    return "".join(f"<li>{item}</li>" for item in items)


def _neighbour(target: str, files, folders, page: str, rel: str) -> str:
    name = files[target].title if target in files else folders[target].title or "Contents"
    word = {"prev": "Previous", "next": "Next"}[rel]
    return _link(target, page, f"<small>{word}</small> {name}", f' rel="{rel}"')


def _toc(headings: list[tuple[int, str, str]]) -> str:
    if len(headings) < 2:
        return ""
    top = min(level for level, _, _ in headings)
    items = "".join(
        f'<li class="t{level - top}"><a href="#{html.escape(at)}">{text}</a></li>'
        for level, at, text in headings
    )
    title = f'<h2 id="{TOC}">On this page</h2>'
    return f'<nav class="toc" aria-labelledby="{TOC}">{title}<ul>{items}</ul></nav>'


def _listing(folder: Folder, page: str) -> str:
    entries = [(f.out, f.title, f.page) for f in folder.folders.values()]
    entries += [(f.out, label(f), f) for f in folder.files]
    if not entries:
        return ""
    items = "".join(
        f"<li>{_link(out, page, title)} {_summary(file)}</li>" for out, title, file in entries
    )
    return f'<nav class="listing" aria-label="Pages here"><ul>{items}</ul></nav>'


def _summary(file: Any) -> str:
    found = re.search(r"<p>(.*?)</p>", file.body[0], re.S) if file else None
    text = re.sub(r"</?a\b[^>]*>", "", found[1]) if found else ""
    end = re.search(r"[.:](\s|$)", plain(text))
    first = plain(text)[: end.start()] if end else plain(text)
    return f"<p>{html.escape(first)}</p>" if first else ""
