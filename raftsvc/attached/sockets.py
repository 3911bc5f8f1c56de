"""The socket in a directory, by which the processes of a host find each other: bound, reached, and who is there.

What only some systems have is here, with what is done without it:

    who is at the other end    SO_PEERCRED (Linux), LOCAL_PEERCRED (macOS, BSD); else the mode of the socket, 0600, and
                               of the directory have to do
    a path that is too long    some 100 bytes fit into an address: it is reached by way of /proc/self/fd (Linux); else
                               refused, with what to do
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from weakref import WeakSet

from raftsvc.errors import ConfigurationError, StorageError
from raftsvc.process import close_in_children

NAME = "socket"
_MOST_PATH_BYTES = 100
_UCRED = struct.Struct("3i")
_XUCRED = struct.Struct("=IIh16I")
_LOCAL_PEERCRED = 1
_ABSENT = frozenset((errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ECONNRESET, errno.EAGAIN))


class NoSocketsError(StorageError):
    """The file system of the directory takes no sockets."""

    http_status = 503
    http_detail = "This node is not ready."
    retry_after = 5.0


@contextmanager
def _short_path(directory: str) -> Iterator[str]:
    """A path of the socket that fits into an address, as long as it lasts."""
    path = os.path.join(directory, NAME)
    if len(os.fsencode(path)) <= _MOST_PATH_BYTES:
        yield path
        return
    if not os.path.isdir("/proc/self/fd"):
        raise ConfigurationError(
            f"{path} is too long for the address of a socket, of at most {_MOST_PATH_BYTES} bytes: several processes "
            "cannot share this directory; choose a shorter path"
        )
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{NAME}"
    finally:
        os.close(fd)


def bind(directory: str) -> socket.socket:
    """The listening socket of the owner of `directory`, in place of any that stands there.

    Nobody else binds meanwhile, for the directory is locked.  Raises NoSocketsError, OSError.
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, NAME))
        is_private = _make_private(server)
        try:
            with _short_path(directory) as path:
                server.bind(path)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EINVAL):
                raise NoSocketsError(
                    f"{directory}: no socket can be made there ({error.strerror}), so that no other process of this "
                    "host can attach to this one: keep the directory on a local disk"
                ) from error
            raise
        if not is_private:  # before anybody can connect; where what stands there could be another's link by now
            os.chmod(os.path.join(directory, NAME), 0o600, follow_symlinks=os.chmod not in os.supports_follow_symlinks)
        server.listen(64)
        return server
    except BaseException:
        server.close()
        raise


def _make_private(server: socket.socket) -> bool:
    """Have the socket made with the mode 0600, whatever the umask; False where a system does not do so (not Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        os.fchmod(server.fileno(), 0o600)
    except OSError:
        return False
    return True


def is_in_place(directory: str, inode: tuple[int, int]) -> bool:
    """Whether the socket that stands there is the one with that device and number."""
    return inode_of(directory) == inode


def inode_of(directory: str) -> tuple[int, int]:
    """Device and number of the socket that stands there; zeros if there is none."""
    try:
        status = os.lstat(os.path.join(directory, NAME))
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def remove(directory: str, inode: tuple[int, int]) -> None:
    """Take the socket away, if it is the one with that device and number."""
    if is_in_place(directory, inode):
        with suppress(OSError):
            os.unlink(os.path.join(directory, NAME))


def connect(directory: str, timeout: float) -> socket.socket | None:
    """A connection to the owner; None if nobody listens.

    Raises ConfigurationError if what listens is another user's, or the path is too long; OSError.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigurationError(
            f"this system ({sys.platform}) has no nodes, and {directory} is a directory: give the URL of a node that "
            "is elsewhere, and a key"
        )
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _made.connections.add(client)
    try:
        client.settimeout(timeout)
        with _short_path(directory) as path:
            client.connect(path)
        check_peer(client, directory)
        client.settimeout(None)
        return client
    except OSError as error:
        end(client)
        if error.errno in _ABSENT or isinstance(error, TimeoutError):
            return None
        raise
    except BaseException:
        end(client)
        raise


class _Made:
    """The connections that this process made: of one that a forked child keeps the owner would not see the end."""

    def __init__(self) -> None:
        self.connections: WeakSet[socket.socket] = WeakSet()
        close_in_children(self)

    def take_descriptors(self) -> Iterable[int]:
        """See `raftsvc.process.HoldsDescriptors`."""
        return [fd for fd in [connection.detach() for connection in list(self.connections)] if fd >= 0]


_made = _Made()


def end(connection: socket.socket) -> None:
    """Close it; the other end sees that, whoever has copies of it, as a child that was forked past Python."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def is_served(directory: str) -> bool:
    """Whether another process listens there.  Raises as `connect`."""
    connection = connect(directory, 1.0)
    if connection is None:
        return False
    try:
        return peer_pid(connection) != os.getpid()
    finally:
        end(connection)


def peer_pid(connection: socket.socket) -> int | None:
    """Who listened at the other end; None where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    return int(_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0])


def check_peer(connection: socket.socket, directory: str) -> None:
    """Raise ConfigurationError if the other end is another user's."""
    uid = peer_uid(connection)
    if uid is not None and uid != os.geteuid():
        raise ConfigurationError(
            f"the process at the other end of {os.path.join(directory, NAME)} is of user {uid}, and this one of user "
            f"{os.geteuid()}: all processes that share a node's directory run as one user"
        )


def peer_uid(connection: socket.socket) -> int | None:
    """Whose the process at the other end is; None where no system of that kind says.  Raises ConnectionResetError."""
    try:
        if hasattr(socket, "SO_PEERCRED"):
            return int(_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1])
        if sys.platform == "darwin" or "bsd" in sys.platform:
            return int(_XUCRED.unpack(connection.getsockopt(0, _LOCAL_PEERCRED, _XUCRED.size))[1])
    except (OSError, struct.error) as error:  # it is gone, or what the system says is not understood: let nobody in
        raise ConnectionResetError(errno.ECONNRESET, f"it cannot be said whose the other end is: {error}") from error
    return None
