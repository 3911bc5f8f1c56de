"""The process of a command: from its arguments to its exit code, with one line on stderr for what went wrong."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from raftsvc.commands import interrupts
from raftsvc.commands.codes import BY_SIGNAL, INTERRUPTED, NOT_RUN, PIPE_CLOSED, WAS_LOST, code_of, line_of
from raftsvc.commands.output import complain, go_deaf, say_json
from raftsvc.commands.parser import parse, runs_command


def run() -> int:
    """The command `raftsvc`."""
    interrupts.install()
    logging.getLogger("raftsvc").addHandler(logging.NullHandler())  # what went wrong is said once, by its error
    return main(sys.argv[1:], os.environ)


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Do what `argv` says, and return the exit code; see `raftsvc.commands.codes`.  Ends the process with usage."""
    args = None
    try:
        args = parse(argv, environ)
        code: int = args.function(args)
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except interrupts.Ended as ended:
        return BY_SIGNAL + ended.number
    except BrokenPipeError:
        go_deaf()
        return PIPE_CLOSED
    except Exception as error:
        return _fail(args, error)


def _fail(args: Any, error: Exception) -> int:
    code = code_of(error)
    if args is not None and runs_command(args.command, args.run):
        code = code if code in range(WAS_LOST, INTERRUPTED) else NOT_RUN
    elif getattr(args, "json", False):
        try:
            say_json({"error": type(error).__name__, "message": str(error), "exit_code": code})
        except BrokenPipeError:
            go_deaf()
        except (OSError, ValueError):
            pass
    complain(line_of(error))
    return code
