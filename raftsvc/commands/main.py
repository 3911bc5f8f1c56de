"""The process of a command: from its arguments to its exit code, with one line on stderr for what went wrong."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from raftsvc.commands import interrupts
from raftsvc.commands.codes import INTERRUPTED, NOT_RUN, PIPE_CLOSED, WAS_LOST, code_of, line_of
from raftsvc.commands.output import complain, go_deaf, say_json
from raftsvc.commands.parser import WITH_COMMAND, parse


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
    except BrokenPipeError:
        go_deaf()
        return PIPE_CLOSED
    except Exception as error:
        return _fail(args, error)


def _fail(args: Any, error: Exception) -> int:
    code = code_of(error)
    if getattr(args, "command", "") in WITH_COMMAND and (args.run or args.command == "lock"):
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
