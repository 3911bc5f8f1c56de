"""What the directory of a member keeps that founded its cluster together with others; see core.founding.

Beside its log: `founding`, the entry by which they did, for ever, and `silent`, as long as it may not speak.
"""

from __future__ import annotations

from raftsvc.errors import StorageError
from raftsvc.storage.files import Files, read_file, settle_names, write_file


class Founded:
    """That of one directory."""

    def __init__(self, files: Files, path: str) -> None:
        """path: of the directory of the log."""
        self._files = files
        self._log_path = path
        self.path = f"{path}/founding"

    def put(self, staged: str, entry: bytes) -> None:
        """Have the member whose log is made at `staged` keep the entry, and be silent.  Raises OSError."""
        write_file(self._files, f"{staged}/founding", entry)
        write_file(self._files, f"{staged}/silent", b"")

    @property
    def is_silent(self) -> bool:
        """Whether the member did not speak yet, and may not."""
        return self._files.exists(f"{self._log_path}/silent")

    def entry(self) -> bytes:
        """By which the cluster was founded; empty if the directory is no such member's.  Raises StorageError."""
        try:
            return read_file(self._files, self.path) if self._files.exists(self.path) else b""
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read: {error}") from error

    def speak(self) -> None:
        """The member is silent no more, durably.  Raises StorageError, after which it may be or not."""
        try:
            if self.is_silent:
                self._files.remove(f"{self._log_path}/silent")
                self._files.sync_dir(self._log_path)
            else:
                settle_names(self._files, self._log_path)  # an earlier attempt got this far
        except OSError as error:
            raise StorageError(f"{self._log_path}: cannot be changed: {error}") from error
