"""`manage.py raft ...`: all that `raftsvc ...` does, by the settings of the project."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser

from raftsvc.ext.django.node import environ_of_settings

_DJANGOS: Final = ("--settings", "--pythonpath")


class Command(BaseCommand):
    """It passes its arguments on as they are, flags and `--help` too."""

    help = "The node of this project: status, members, backup and all else that raftsvc can do."
    requires_system_checks: Sequence[str] = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """As the command line begins it; ends the process by the command's own exit code."""
        raise SystemExit(_main(_without_djangos(argv[2:])))

    def add_arguments(self, parser: CommandParser) -> None:
        """For `call_command`."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def handle(self, *args: str, **options: Any) -> None:
        """As `call_command("raft", "status")` begins it; raises CommandError by the command's own exit code."""
        code = _main(list(options["arguments"]))
        if code:
            raise CommandError(f"raftsvc ended with {code}", returncode=code)


def _without_djangos(arguments: list[str]) -> list[str]:
    """Without the two options that `manage.py` itself has read by then, wherever they stand before `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept: list[str] = []
    words = iter(arguments[:end])
    for word in words:
        name, is_with_value, _ = word.partition("=")
        if name not in _DJANGOS:
            kept.append(word)
        elif not is_with_value:
            next(words, None)
    return kept + arguments[end:]


def _main(arguments: list[str]) -> int:
    from raftsvc.commands.main import main  # which only this takes

    return main(arguments, environ_of_settings())
