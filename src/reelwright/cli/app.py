"""The Typer app, and how a command ends: exit codes and one message for a mistake."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from reelwright.console import print_error
from reelwright.types import UsageError, UserError

app = typer.Typer(
    name="reelwright",
    help="From a folder of captioned clips to a text-to-video model you own. --debug shows where a failure happened.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        code = app(args=arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer makes this of a KeyboardInterrupt
            print_error("interrupted; of prepare, train and experiment the same command goes on")
    except UserError as error:
        if debug:
            traceback.print_exc()
        print_error(str(error))
        code = error.exit_code
    except typer.Exit as exit_:
        code = exit_.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted")
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
