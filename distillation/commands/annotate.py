"""`distill annotate SRC…`: literate Python as a site of notes and code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from distillation.errors import ConfigError


def annotate(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SRC…", help="Folders, .py, .md and .ipynb files, or a .yaml that lists them."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the site goes.")] = Path(
        "site"
    ),
    title: Annotated[
        str, typer.Option(help="The site's name.", show_default="the front page's")
    ] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 when there are problems.")
    ] = False,
) -> None:
    """Make a site of literate Python and notebooks: notes left, code right.

    Docstrings and comments are Markdown with `$…$` and `$$…$$`. Broken math, links that lead
    nowhere and docstrings with a backslash that are not raw are reported with file and line.

    Example: distill annotate experiments --out site --strict
    """
    try:
        from distillation import annotate as generator
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"distill annotate needs {error.name}: pip install 'distillation[site]'"
        ) from error

    root = None
    if len(sources) == 1 and sources[0].suffix in (".yaml", ".yml"):
        sources, title, root = _listed(sources[0], title)
    count, problems = generator.annotate(sources, out, title=title, root=root)
    for problem in problems:
        print(problem, file=sys.stderr)
    pages = "1 page" if count == 1 else f"{count} pages"
    found = f", {len(problems)} problem{'s' * (len(problems) != 1)}" if problems else ""
    print(f"{pages} in {out}{found}")
    if strict and problems:
        raise SystemExit(1)


def _listed(path: Path, title: str) -> tuple[list[Path], str, Path]:
    """(sources, title, root) of a list: `title`, `root` (from its own folder) and `pages`."""
    from omegaconf import OmegaConf

    from distillation.errors import unknown

    if not path.is_file():
        raise ConfigError(f"no file {path}")
    listed = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(listed, dict) or not isinstance(listed.get("pages"), list):
        raise ConfigError(f"{path} needs a list of `pages`, besides `title` and `root`")
    for key in listed:
        if key not in ("title", "root", "pages"):
            raise ConfigError(f"{path}: {unknown('key', key, ('title', 'root', 'pages'))}")
    root = (path.parent / listed.get("root", ".")).resolve()
    return [root / page for page in listed["pages"]], title or listed.get("title", ""), root
