"""What a member has stored, read from elsewhere piece by piece, as if it were a file here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from raftsvc.core.messages import MalformedError
from raftsvc.errors import RaftError, StorageError
from raftsvc.storage import Files
from raftsvc.transport.visits import NO_COPY, Piece, decode_piece, encode_copy


class FarFiles(Files):
    """A disk with one file, the snapshot of the member that answers, for a `StoredSnapshot` to read.

    node_id: whose it is, once it is open.
    """

    def __init__(self, ask: Callable[[bytes, bool], bytes]) -> None:
        """ask: a member, given what is asked and whether that is the first; raises RaftError."""
        super().__init__()
        self._ask = ask
        self._token = NO_COPY
        self._size = 0
        self._start = 0
        self._data = b""
        self.node_id = 0

    def open_to_read(self, path: str, follows: bool = False) -> int:
        """Have the member keep it open: another one each time, with nothing left of the one before."""
        self._token, self._start, self._data = NO_COPY, 0, b""
        piece = self._fetch(0, is_first=True)
        self._token, self._size, self.node_id = piece.token, piece.size_bytes, piece.node_id
        return 0

    def size(self, fd: int) -> int:
        """Of the file."""
        return self._size

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at its end."""
        parts = []
        while size > 0:
            if not self._start <= offset < self._start + len(self._data):
                if offset >= self._size:
                    break
                self._fetch(offset)
            part = self._data[offset - self._start : offset - self._start + size]
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def close(self, fd: int) -> None:
        """The member need not keep it; if that is not heard it closes it by itself."""
        with suppress(RaftError):
            self._ask(encode_copy(self._token, None), False)

    def _fetch(self, offset: int, is_first: bool = False) -> Piece:
        try:
            piece = decode_piece(self._ask(encode_copy(self._token, offset), is_first))
        except MalformedError as error:
            raise StorageError(f"what a member sent does not decode: {error}") from error
        self._start, self._data = offset, piece.data
        return piece
