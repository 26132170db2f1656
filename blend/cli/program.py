"""The program: all its commands, and the exit codes that errors become."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from blend import __version__
from blend.cli import criteria, prune, runs, search, transfer
from blend.cli.streams import open_standard_streams
from blend.errors import BlendError, InputError, Interrupted

DONE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(
    name="blend",
    help="Searches a blended pruning criterion for your trained network, your data and your budget.",
    epilog="Begin with:  blend search digits",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"blend {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for kind in (search, runs, criteria, prune, transfer):
    app.add_typer(kind.commands)


def main() -> None:
    """Entry point of the program: maps errors to one line and an exit code."""
    open_standard_streams()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code: 0 done, 2 bad input, 3 failed, 130 interrupted."""
    try:
        code = int(app(arguments, standalone_mode=False) or DONE)
        # Typer makes an exit code of Ctrl-C where no command did better, and says nothing.
        return _complain("interrupted", INTERRUPTED) if code == INTERRUPTED else code
    except Interrupted as error:
        return _complain(error, INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", INTERRUPTED)
    except InputError as error:
        return _complain(error, BAD_INPUT)
    except BlendError as error:
        return _complain(error, FAILED)
    except typer.TyperException as error:
        # A missing argument, an unknown command or option; without any arguments, the help is on the screen already.
        return _complain(usage, BAD_INPUT) if (usage := _usage_error(error)) else BAD_INPUT
    except Exception:  # noqa: BLE001 — a fault of this program: everything is told, and the exit code says "failed"
        traceback.print_exc()
        return FAILED


def _usage_error(error: typer.TyperException) -> str:
    message = str(getattr(error, "format_message", error.__str__)()).rstrip(".")
    reasons = getattr(error.__cause__, "errors", None)  # pydantic's, with which Typer reads numbers
    return f"{message}, got {reasons()[0]['input']!r}" if reasons else message


def _complain(reason: object, code: int) -> int:
    label = "" if code == INTERRUPTED else "error: "
    print(f"{label}{' '.join(str(reason).split())}", file=sys.stderr)
    return code
