"""The `distill` command.

Every subcommand is a function in its own file under `distillation/commands/`, imported only when
it is called, so that `distill runs` does not pay for torch. A new one is a line in `COMMANDS`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import typer
import typer.core
import typer.main

from distillation.errors import ConfigError, DistillationError, unknown
from distillation.pipes import ends_with_its_reader

# click's class, which newer typers hold within themselves
_UsageError = typer.BadParameter.__mro__[1]

# name -> module:function; the function's docstring is the help
COMMANDS = {
    "runs": "distillation.commands.runs:runs",
    "show": "distillation.commands.show:show",
    "compare": "distillation.commands.compare:compare",
    "rm": "distillation.commands.rm:rm",
    "evaluate": "distillation.commands.evaluate:evaluate",
    "cache": "distillation.commands.cache:cache",
    "dashboard": "distillation.commands.dashboard:dashboard",
    "annotate": "distillation.commands.annotate:annotate",
    "train": "distillation.commands.train:train",
    "export": "distillation.commands.export:export",
}


class LazyCommands(typer.core.TyperGroup):
    """A group that knows its commands by name and imports each one when it is needed."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str):
        if cmd_name.startswith("-"):
            return None
        if cmd_name not in COMMANDS:
            raise ConfigError(unknown("command", cmd_name, COMMANDS))
        module, _, name = COMMANDS[cmd_name].partition(":")
        function = getattr(importlib.import_module(module), name)
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(cmd_name)(function)
        return typer.main.get_command(alone)


app = typer.Typer(
    cls=LazyCommands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """Train from recipes; find, compare, evaluate, export and remove recorded runs.

    Runs are looked for under --runs ROOT, else in DISTILLATION_RUNS, else in ./logs. A run is named
    by its UUID or any unique beginning of it.

    Example: distill runs --experiment digits
    """
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, or 2 and a message for what the user can put right.

    Where the reader of its output goes away (`| head -1`) it ends and says nothing.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character
    with ends_with_its_reader():
        try:
            # Not standalone: click would print its errors in another form than ours
            command = typer.main.get_command(app)
            code = command.main(args=arguments, prog_name="distill", standalone_mode=False)
        except DistillationError as error:
            code = _fail(str(error))
        except _UsageError as error:
            code = _fail(_usage(error))
        except typer.Abort:  # Ctrl-D, or Ctrl-C, at a question
            print("\naborted", file=sys.stderr)
            code = 1
        sys.exit(code or 0)


def _usage(error: Exception) -> str:
    """What is wrong with the arguments, and which command says what is right."""
    context = error.ctx
    told = f"`{context.command_path} --help`" if context else "--help"
    if context and hasattr(error, "possibilities"):  # an option that there is not
        options = [name for p in context.command.get_params(context) for name in p.opts]
        return unknown("option", error.option_name, options, told)
    message = error.format_message().rstrip(".")
    return f"{message[:1].lower()}{message[1:]}; {told} says what it takes"


def _fail(message: str) -> int:
    print(f"distill: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
