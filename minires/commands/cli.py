"""The command line: `minires COMMAND`. Each command is a module of this folder."""

import argparse
import importlib
import os
import sys

import minires
from minires.arrays.text import prepare_streams, say

# These errors the user can mend: they are told in one line. Any other error is our own mistake, and
# its trace is shown.
MENDABLE = (ValueError, OSError, FloatingPointError, RuntimeError, MemoryError, ImportError)

# Each module has `add_parser(subparsers)`. It sets `run` to the function that carries out the
# command. It may set `kept` to words that Ctrl-C prints: what is kept of the work so far.
COMMANDS = (
    "run",
    "sweep",
    "report",
    "evaluate",
    "improve",
    "lessons",
    "check",
    "bench",
    "info",
)


def parser() -> argparse.ArgumentParser:
    """The commands and options of the command line."""
    parser = argparse.ArgumentParser(
        prog="minires", description="Better networks by weight resampling (arXiv:1807.00847)."
    )
    parser.add_argument("--version", action="version", version=f"minires {minires.__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"minires.commands.{name}").add_parser(subparsers)
    return parser


def main(arguments: list | None = None) -> int:
    """Run one command.

    arguments   words of the command line; None: those of this process
    Returns     the exit code: 0, 2 for bad input, 130 after Ctrl-C
    """
    prepare_streams()
    commands = parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        commands.print_help(sys.stderr)
        return 2
    options = commands.parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        say("", f"stopped{getattr(options, 'kept', '')}")
        return 130
    except BrokenPipeError:  # `minires run | head`: the reader has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MENDABLE as error:
        say(f"minires: {_told(error)}")
        return 2


def _told(error):
    """An error in one line; the remedy is added if the error's own words have none."""
    if type(error).__name__ == "OutOfMemoryError":  # CuPy's
        return (
            f"the GPU's memory is full ({error}): lower --batch, --members or --replicas, end "
            "other programs that use the card, or run on the CPU"
        )
    name = getattr(error, "filename", None)
    if isinstance(error, FileNotFoundError) and name:
        return f"there is no file or folder {name}: check its name, or give its whole path"
    if isinstance(error, PermissionError) and name:
        return f"{name}: no permission to read or write it: name another place"
    return error


if __name__ == "__main__":
    sys.exit(main())
