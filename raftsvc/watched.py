"""Small files that are read again and again, so that what is new in them is used without a restart.

A file is read whole at each look, which is cheaper than to ask when it was changed and misses nothing: links that are
set to another file, clocks that go back.  What is new is taken at the second look that finds it, for a writer may be
in the middle of it.  What cannot be read, or makes no sense, changes nothing: what was used before is used on, one line
of the log says so, and another when it is mended.  So it is said of what was right once and is not any more, as of a
certificate that expires.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from raftsvc import logs
from raftsvc.errors import ConfigurationError

logger = logging.getLogger("raftsvc.files")

T = TypeVar("T")

MAX_FILE_BYTES = 1024 * 1024
LOOK_SECONDS = 2.0
"""Between two looks; what is new is in use after two of them."""
_STOP_SECONDS = 1.0


def read_file(name: str, path: str) -> bytes:
    """What is in a file now.  name: of the option that names it.  Raises ConfigurationError."""
    try:
        # Of a pipe, which somebody may have put there, the opening would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigurationError(f"{name}: {path:.300} is no file")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{name}: {path:.300} cannot be read: {why}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{name}: {path:.300} has more than {MAX_FILE_BYTES} bytes")
    return data


def read_keys(name: str, path: str, understand: Callable[[bytes], list[T]]) -> list[T]:
    """What `understand` finds in a file now.  name: of the option that names it.  Raises ConfigurationError."""
    data = read_file(name, path)
    try:
        return understand(data)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {path:.300}: {error}") from error


def watched_file(name: str, path: str, use: Callable[[bytes], str]) -> WatchedFiles:
    """A file of the application's, what is in it in use; see `Service.watch_file`.  Raises ConfigurationError."""
    watched = WatchedFiles(name, [path], lambda found: str(use(found[0])))
    try:
        use(watched.used[0])
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {watched.paths[0]}: {error}") from error
    return watched


class WatchedFiles:
    """Those of one option, used together.  All but `trouble` is called by one thread."""

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        use: Callable[[Sequence[bytes]], str],
        judge: Callable[[], str] = lambda: "",
    ) -> None:
        """Reads them for the first time.  Raises ConfigurationError.

        name: of the option.  use: has what is in them used from now on, and returns what is said of it in the log;
              what it raises, a ConfigurationError, says why it is not used.
        judge: says what is wrong by now with what is in use, for that may be a matter of time; empty if nothing is.
        """
        self.name = name
        self.paths = [os.path.abspath(path) for path in paths]
        self.trouble = ""
        """Why what is in them now is not used, or is used and worth nothing; empty if all is well."""
        self._use = use
        self._judge = judge
        self._is_outdated = False
        self.used: Sequence[bytes] = [read_file(name, path) for path in self.paths]
        self._seen: Sequence[bytes] | str = self.used

    @property
    def is_used(self) -> bool:
        """Whether the last look found what is in use."""
        return self._seen == self.used

    def look(self) -> None:
        """Use what is in them, once two looks have found it."""
        found: Sequence[bytes] | str
        try:
            found = [read_file(self.name, path) for path in self.paths]
        except ConfigurationError as error:
            found = str(error)
        seen, self._seen = self._seen, found
        if found == self.used:
            trouble = self._judge()
            self._note(f"{self.name}: {trouble}" if trouble else "", is_outdated=bool(trouble))
        elif found == seen:
            self._take(found)

    def _take(self, found: Sequence[bytes] | str) -> None:
        if isinstance(found, str):
            self._note(found)
            return
        try:
            said = self._use(found)
        except ConfigurationError as error:
            self._note(f"{self.name}: {', '.join(self.paths)}: {error}")
            return
        self.used = found
        text = f"{self.name}: what is new in {', '.join(self.paths)} is used now: {said}"
        self._say(logging.WARNING, text, "file-renewed")
        self._note("")

    def _note(self, trouble: str, is_outdated: bool = False) -> None:
        """is_outdated: it is what is in use that is wrong; said once, though its words differ from look to look."""
        former, self.trouble = self.trouble, trouble
        was_outdated, self._is_outdated = self._is_outdated, is_outdated
        if is_outdated:
            if not was_outdated:
                self._say(logging.ERROR, trouble, "file-outdated")
        elif trouble and trouble != former:
            text = f"{trouble}; what was used before is used on"
            self._say(logging.ERROR, text, "file-refused")
        elif former and not trouble:
            text = f"{self.name}: {', '.join(self.paths)} as it should be again"
            self._say(logging.WARNING, text, "file-mended")

    def _say(self, level: int, text: str, event: str) -> None:
        with suppress(Exception):  # of a handler of the application's: what is in use does not depend on it
            logs.tell(logger, level, text, logs.what(event, option=self.name))


class Watch:
    """Looks at files on a thread of its own, which ends with `stop`; a child that is forked has none."""

    def __init__(self, files: Sequence[WatchedFiles], looked: Callable[[str], None]) -> None:
        """looked: called after each look, with what is wrong; it has to be quick."""
        self.files = tuple(files)
        """All that are looked at; replaced as a whole."""
        self._looked = looked
        self._lock = threading.Lock()  # held while `files` is replaced and while the thread begins; no look takes it
        self._is_begun = False
        self._stopping = threading.Event()
        self._due = threading.Event()  # set when it is to look, or to end, before its time
        self._thread = threading.Thread(target=self._run, name="raftsvc-files", daemon=True)

    def start(self) -> None:
        """Begin, unless it has, or there are no files.  Raises RuntimeError if no thread can be started."""
        with self._lock:
            self._is_begun = True
            self._start_thread()

    def _start_thread(self) -> None:
        if self._is_begun and self.files and self._thread.ident is None and not self._stopping.is_set():
            self._thread.start()

    def add(self, files: WatchedFiles) -> None:
        """Look at these too, in the place of those of the same name.  Raises RuntimeError as `start` does."""
        with self._lock:
            self.files = (*(each for each in self.files if each.name != files.name), files)
            self._start_thread()

    def remove(self, files: WatchedFiles) -> None:
        """Look at these no more.  Idempotent."""
        with self._lock:
            self.files = tuple(each for each in self.files if each is not files)

    def stop(self) -> None:
        """End; waits a moment at most, for a file system that hangs lets go of nobody.  Idempotent."""
        self._stopping.set()
        self._due.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(_STOP_SECONDS)

    def hurry(self) -> None:
        """Have what is in the files now used at once, as at a start, and not after two looks.  Waits for nothing."""
        self._due.set()

    def look(self) -> None:
        """Look once.  What goes wrong that is not foreseen is logged, and it is looked again."""
        files = self.files
        for each in files:
            try:
                each.look()
            except Exception as failure:
                each.trouble = f"{each.name} could not be looked at: {failure!r}"
                with suppress(Exception):
                    logger.exception("%s", each.trouble)
        try:
            self._looked("; ".join([each.trouble for each in files if each.trouble]))
        except Exception:
            with suppress(Exception):
                logger.exception("what was found in the files that are watched could not be told")

    def _run(self) -> None:
        while True:
            is_hurried = self._due.wait(LOOK_SECONDS)
            if self._stopping.is_set():
                return
            self._due.clear()
            for _ in range(2 if is_hurried else 1):
                with suppress(Exception):  # whatever it is, it is looked again
                    self.look()
