"""A command that is run, and ended if what it needs is lost: with all that it started, as far as that can be found.

It has a process group of its own, in a session of its own, so a signal reaches what it started too; what this process
is told (Ctrl-C, SIGTERM, a terminal that closes) it is told.  Ctrl-Z does nothing: who is stopped renews nothing.

If this process itself is killed by SIGKILL nobody ends the command; only the fence keeps out what it does then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Final

from raftsvc.commands.codes import BY_SIGNAL, NOT_EXECUTABLE, NOT_FOUND, CommandError

_FORWARDED: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_LOOK_SECONDS: Final = 0.2
"""Between two looks, of who waits, at what he is not woken by."""
_POLL_SECONDS: Final = 0.01


class Child:
    """A command that runs.  Made, and waited for, by the main thread."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start it.  Raises CommandError if it cannot be."""
        self._early: list[int] = []  # signals that came before it had a number
        self._process: subprocess.Popen[bytes] | None = None
        self._former = {
            number: signal.signal(number, self._forward)
            for name in (*_FORWARDED, "SIGTSTP")
            if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            self._process = subprocess.Popen(command, env=dict(environ), start_new_session=True)
        except BaseException as error:
            self._restore()
            if isinstance(error, FileNotFoundError):
                raise CommandError(f"{command[0]}: there is no such command", NOT_FOUND) from error
            if isinstance(error, OSError):
                raise CommandError(f"{command[0]} cannot be run: {error}", NOT_EXECUTABLE) from error
            raise
        for number in self._early:
            self._signal(number)

    def wait(self, lost: threading.Event, grace: float) -> tuple[int, bool]:
        """Return once it has ended, with its exit code and whether it was ended because `lost` was set.

        grace: in seconds, between the request to end and SIGKILL.
        """
        process = self._process
        assert process is not None, "it was started"
        has_ended = threading.Event()

        def reap() -> None:
            process.wait()
            has_ended.set()

        guard = threading.Thread(target=self._guard, args=(lost, has_ended, grace), name="raftsvc-guard", daemon=True)
        try:
            guard.start()
            threading.Thread(target=reap, name="raftsvc-reaper", daemon=True).start()
            # A signal may be taken by another thread, and then interrupts nothing here.
            while not has_ended.wait(_LOOK_SECONDS):
                pass
            is_lost = lost.is_set()
            if is_lost:
                self._end(grace)
            guard.join()
            code = process.wait()
        except BaseException:
            self._end(0.0)
            raise
        finally:
            has_ended.set()
            self._restore()  # not before: a signal would end this process, and not what is left of the command
        return (BY_SIGNAL - code if code < 0 else code), is_lost

    def _guard(self, lost: threading.Event, has_ended: threading.Event, grace: float) -> None:
        """End it once what it needs is lost."""
        while not has_ended.is_set():
            if lost.wait(_LOOK_SECONDS):
                self._end(grace)
                return

    def _end(self, grace: float) -> None:
        """Ask all of its group to end, and kill what is left of it after `grace` seconds."""
        ends_at = time.monotonic() + grace
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # who is stopped hears nothing
        while time.monotonic() < ends_at and self._signal(0):
            time.sleep(_POLL_SECONDS)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> bool:
        """Send it to the group; whether anybody is left there."""
        process = self._process
        if process is None:
            self._early.append(number)
            return True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
            return True
        return False

    def _forward(self, number: int, _: FrameType | None) -> None:
        if number != getattr(signal, "SIGTSTP", None):
            self._signal(number)

    def _restore(self) -> None:
        """Signals are this process's own again."""
        for number, former in self._former.items():
            signal.signal(number, former if former is not None else signal.SIG_DFL)
