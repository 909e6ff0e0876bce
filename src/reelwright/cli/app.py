"""The Typer app, and how a command ends: exit codes and one message for a mistake."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from reelwright.console import print_error
from reelwright.signals import INTERRUPTED, interrupts_heard
from reelwright.types import UsageError, UserError

# What of a command's work is there after Ctrl-C, and how to go on. Training says it itself, as it knows the step.
KEPT = {
    "demo": "what is done is kept; the same command goes on",
    "shapes": "the clips rendered so far are kept; the same command goes on",
    "inspect": "nothing was written",
    "prepare": "what was encoded is kept; the same command goes on",
    "train": "what was prepared is kept, and the last checkpoint; the same command goes on",
    "generate": "videos that were finished are kept, of the others nothing was written",
    "noise": "no video was written",
    "refine": "no video was written",
    "evaluate": "no score was written; the same command measures anew",
    "experiment": "the runs so far are kept; the same command goes on",
    "compare": "no page was written",
    "export": "nothing was written",
}


class Group(TyperGroup):
    """Commands listed with the whole first paragraph of their help: typer's own list cuts it to one line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, " ".join((command.help or "").partition("\n\n")[0].split()))
            for name, command in found
            if command is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


app = typer.Typer(
    name="reelwright",
    cls=Group,
    help="From a folder of captioned clips to a text-to-video model you own. --debug shows where a failure happened.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    A command that has itself said how it was interrupted raises SystemExit(INTERRUPTED).
    """
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        with interrupts_heard():
            code = app(args=arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer makes this of a KeyboardInterrupt
            print_error(_interrupted(arguments))
    except UserError as error:
        if debug:
            traceback.print_exc()
        print_error(str(error))
        code = error.exit_code
    except typer.Exit as exit_:
        code = exit_.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print_error(_interrupted(arguments))
        code = INTERRUPTED
    except Exception as error:
        show = getattr(error, "show", None)  # typer's own usage errors know how to print themselves
        if show is not None:
            show()
            code = UsageError.exit_code
        elif debug:
            raise
        else:
            print_error(f"{type(error).__name__}: {error} (an unexpected failure; --debug shows where)")
            code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _interrupted(arguments: list[str]) -> str:
    """The one line after Ctrl-C."""
    kept = KEPT.get(next((word for word in arguments if not word.startswith("-")), ""))
    return f"interrupted; {kept}" if kept else "interrupted"


def _print_version(wanted: bool) -> None:
    if wanted:
        from reelwright import __version__

        print(f"reelwright {__version__}")
        raise typer.Exit()


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """From a folder of captioned clips to a text-to-video model you own."""
