"""What the tests of the dashboard's pages do again and again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[3]
PHONE = {"width": 390, "height": 844}
HOSTILE = "<img src=x onerror=window.hacked=1>"


@contextmanager
def dashboard(root: Path, *options: str):
    """`distill dashboard` over the runs at `root`, as a process; gives the address it prints."""
    command = [sys.executable, "-m", "distillation.cli", "dashboard", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--runs", str(root), *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"the dashboard said {line!r}"
        yield found[0].removesuffix("/")
    finally:
        process.terminate()
        process.wait(timeout=20)


def click(tab, selector: str) -> None:
    """Click the first element that `selector` finds, which must be there."""
    tab.run(f"document.querySelector({json.dumps(selector)}).click()")


def write(tab, selector: str, text: str) -> None:
    """Type `text` into a field, instead of what it holds."""
    tab.run(
        f"""(() => {{
            const field = document.querySelector({json.dumps(selector)});
            field.focus();
            field.value = {json.dumps(text)};
            field.dispatchEvent(new Event('input', {{bubbles: true}}));
        }})()"""
    )


def texts(tab, selector: str) -> list[str]:
    """The text of every element that `selector` finds."""
    return tab.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
    )


def text(tab, selector: str = "main") -> str:
    """The text that one element shows."""
    return tab.run(f"document.querySelector({json.dumps(selector)}).innerText")


def open_list(tab, origin: str, query: str = "", **size) -> None:
    """The list, once it has rows."""
    tab.open(f"{origin}/{query}", **size)
    tab.wait("document.querySelector('.runs tbody tr')")


def listed(tab) -> list[str]:
    """UUIDs of the rows, from the top."""
    return tab.run("[...document.querySelectorAll('.runs tbody tr')].map(r => r.dataset.uuid)")


def column(tab, title: str) -> list[str]:
    """The cells of the list's column `title`, from the top."""
    return texts(tab, f'.runs td[data-column="{title}"]')


def drawn(tab, title: str) -> str:
    """A JavaScript expression: the drawing of the figure `title`, None before it is drawn.

    The figure is brought into sight, where charts are drawn.
    """
    found = (
        "[...document.querySelectorAll('figure')]"
        f".find(f => f.querySelector('h3').textContent.startsWith({json.dumps(title)}))"
    )
    tab.wait(found)
    tab.run(f"{found}.scrollIntoView({{block: 'center'}})")
    tab.wait(f"{found}.querySelector('.drawing').dataset.drawn")
    return f"{found}.querySelector('.drawing')"


def sideways(tab) -> bool:
    """Whether the page can be scrolled sideways."""
    tab.run("scrollTo(500, 0)")
    return tab.run("scrollX > 0 || document.documentElement.scrollWidth > innerWidth")


def number(shown: str) -> float:
    """The number that a cell shows; of a share in percent, the share."""
    found = float(shown.replace("−", "-").replace(",", "").removesuffix(" %"))
    return found / 100 if shown.endswith(" %") else found
