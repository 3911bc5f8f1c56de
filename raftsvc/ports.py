"""The port of a listener; and one that outlives the process that listens on it.

A server of several worker processes binds the node's port once, in the process from which they are
forked (`keep`).  Each of them has it then, and whoever owns the node listens there, instead of binding one.
While nobody does, as between the death of an owner and the next, connections wait in the kernel and are
not refused.

Invariants:
- At a kept port one process at a time accepts, whoever else has the descriptor: the one that has the *claim*, a record
  lock on a file without a name, which is the kernel's, belongs to a process, is inherited by no fork, and ends with it.
- What comes by the environment is taken only if it was said to this very process, or to its parent, and is what it
  should be.
- Who has it is the process that keeps it and those that it forks itself: their children have nothing of it
  (`raftsvc.process`), nor have its own once it has a node.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import threading
from collections.abc import Iterable, MutableMapping, Sequence
from contextlib import suppress

from raftsvc.errors import ConfigurationError
from raftsvc.process import close_in_children
from raftsvc.systems import lock_for_process, nameless_file, unlock_for_process

VARIABLE = "_RAFTSVC_PORTS"
"""By which a process that executes another program in its own place hands on what it keeps."""
_BACKLOG = 128
_NOBODY = -1
_NOT_HERE = frozenset((errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL))

Place = tuple[str, int]


def place_of(address: str) -> Place:
    """Host and port of `host:port`.  Raises ConfigurationError."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536):
        raise ConfigurationError(f"listen={address!r} is not host:port, with a port up to 65535")
    return host.strip("[]"), int(port)


def bind(place: Place) -> list[socket.socket]:
    """A listening socket for each address of the host, at one port; those that this machine does not have are left out.

    None of them blocks.  Raises OSError; ValueError for a name that cannot be one.
    """
    host, port = place
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            port = bound[0].getsockname()[1] if bound else port
            try:
                bound.append(_bind(family, (address[0], port, *address[2:]), len(addresses) > 1))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing = error
        if missing is not None and not bound:
            raise missing
    except BaseException:
        for each in bound:
            each.close()
        raise
    return bound


def _bind(family: int, address: tuple[object, ...], is_one_of_several: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and is_one_of_several:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # the others have sockets of their own
        try:
            made.bind(address)
            made.listen(_BACKLOG)
        except OSError as error:
            kept = [port for port in list(_kept.values()) if port.place[1] == address[1]]
            if error.errno != errno.EADDRINUSE or not kept:
                raise
            other = f"{kept[0].place[0]}:{kept[0].place[1]}"
            why = f"the parent of this process keeps that port as listen='{other}': say the same at both places"
            raise OSError(errno.EADDRINUSE, why) from error
        made.setblocking(False)  # of all processes that have it: what one sees come another may have accepted
    except BaseException:
        made.close()
        raise
    return made


class Port:
    """A port that is kept: its sockets, and the claim to accept there.  Thread-safe."""

    def __init__(self, place: Place, sockets: Sequence[socket.socket], claim_fd: int, keeper: int) -> None:
        """claim_fd: of the file whose lock is the claim; closed by nobody as long as this process may have that.

        keeper: id of the process whose children have the port too.
        """
        self.place = place
        self.keeper = keeper
        self._sockets = list(sockets)
        self._claim_fd = claim_fd
        self._lock = threading.Lock()  # guards the next
        self._claimed_by = 0  # a process id: what a fork copies is no claim
        close_in_children(self)

    def claim(self) -> list[socket.socket] | None:
        """Accept there from now on, by these sockets, the caller's to close; None while somebody else does."""
        with self._lock:
            if self._claimed_by == os.getpid():  # by another listener of this process, which the kernel would let in
                return None
            try:
                lock_for_process(self._claim_fd)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return None
                raise
            self._claimed_by = os.getpid()
        try:
            return [each.dup() for each in self._sockets]
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others accept there: this process does no more."""
        with self._lock:
            if self._claimed_by == os.getpid():
                self._claimed_by = 0
                unlock_for_process(self._claim_fd)

    def close(self) -> None:
        """Give it up, as far as this process has it."""
        self.keeper = _NOBODY
        for fd in self.take_descriptors():
            with suppress(OSError):
                os.close(fd)

    def descriptors(self) -> list[int]:
        """Of the sockets; of the claim, the last."""
        return [*(each.fileno() for each in self._sockets), self._claim_fd]

    def take_descriptors(self) -> Iterable[int]:
        """See `raftsvc.process.HoldsDescriptors`; none in a child of the process that keeps it for its children."""
        if self.keeper == os.getppid():
            return ()
        if _kept.get(self.place) is self:
            del _kept[self.place]
        sockets, self._sockets = self._sockets, []
        fd, self._claim_fd = self._claim_fd, -1
        return [*(each.detach() for each in sockets), *([fd] if fd >= 0 else [])]


_kept: dict[Place, Port] = {}


def keep(address: str) -> None:
    """Bind the port of `address`, `host:port`, for this process and all that are forked from it; no other is kept.

    If that one is kept already nothing changes; empty: none is.  Raises ConfigurationError, OSError.
    """
    if not address:
        for port in list(_kept.values()):
            port.close()
        return
    place = place_of(address)
    if not place[1]:
        raise ConfigurationError(f"listen={address!r} names no port, and one that is kept has to be found again")
    for other in [each for each in _kept.values() if each.place != place]:
        other.close()
    if place in _kept:
        return
    bound = bind(place)
    try:
        _kept[place] = Port(place, bound, nameless_file(), os.getpid())
    except BaseException:
        for each in bound:
            each.close()
        raise


def hide_from_children() -> None:
    """Have no process that is forked from this one from now on have any of it: this is one that has a node."""
    for port in list(_kept.values()):
        port.keeper = _NOBODY


def kept_at(place: Place) -> Port | None:
    """The port that is kept for whoever listens there."""
    return _kept.get(place)


def hand_on(environ: MutableMapping[str, str]) -> None:
    """Have what is kept go on in the program that is executed next, in this process, with `environ`."""
    told = []
    for port in _kept.values():
        for fd in port.descriptors():
            os.set_inheritable(fd, True)
        told.append([*port.place, *port.descriptors()])
    environ[VARIABLE] = json.dumps([os.getpid(), told])


def adopt(environ: MutableMapping[str, str]) -> None:
    """Keep what the program before handed on, to this process or to its parent, which may not know what that is.

    What is no such port, or was said to another process, is left alone.
    """
    said = environ.pop(VARIABLE, None)
    if said is None:
        return
    with suppress(Exception):  # whatever stands there, a server starts
        pid, told = json.loads(said)
        for host, number, *fds, claim_fd in told if pid in (os.getpid(), os.getppid()) else []:
            _adopt((str(host), int(number)), list(map(int, fds)), int(claim_fd), int(pid))


def _adopt(place: Place, fds: Sequence[int], claim_fd: int, keeper: int) -> None:
    claim = os.fstat(claim_fd)
    if not stat.S_ISREG(claim.st_mode) or claim.st_nlink:
        raise ValueError(f"descriptor {claim_fd} is no file without a name")
    sockets: list[socket.socket] = []
    try:
        for fd in fds:
            sockets.append(each := socket.socket(fileno=fd))
            if not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) or each.getsockname()[1] != place[1]:
                raise ValueError(f"descriptor {fd} is no listening socket at {place}")
            each.setblocking(False)
    except BaseException:
        for each in sockets:
            each.detach()
        raise
    for fd in (*fds, claim_fd):
        os.set_inheritable(fd, False)
    _kept[place] = Port(place, sockets, claim_fd, keeper)
