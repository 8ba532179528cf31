"""`distill dashboard`: the run store in a browser."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from distillation.commands import output
from distillation.errors import ConfigError
from distillation.runs.places import root


def dashboard(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where it answers; 0 takes any free port.")
    ] = 8090,
    host: Annotated[
        str, typer.Option(help="An address of this machine; 0.0.0.0 is all of them.")
    ] = "127.0.0.1",
    open: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = False,
    runs: output.Runs = None,
) -> None:
    """Show the runs in a browser: live curves, comparison, lineage, what was transferred.

    It reads the run store; all it writes are your notes and which runs you hide. Only this machine
    reaches it, unless --host says otherwise: then the printed address holds a token, new each time.

    Example: distill dashboard --port 8090
    """
    try:
        from distillation.dashboard import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"distill dashboard needs {error.name}: pip install 'distillation[dashboard]'"
        ) from error

    place = root(runs)
    if not place.is_dir():
        print(f"no runs in {place} yet; they are shown as they come", file=sys.stderr)
    door = serve.open_door(host, port)
    if door.token is not None:
        print(
            "who reaches this machine under any of its addresses needs the token", file=sys.stderr
        )
    serve.serve(place, door, open_browser=open, say=lambda text: print(text, flush=True))
