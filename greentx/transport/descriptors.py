"""The descriptors of ZeroMQ's threads, which a forked child must not keep.

The threads do not exist in the child, but copies of their descriptors do: a connection would stay open when the parent
has gone, and the server would go on pushing requests into it. ZeroMQ cannot close them there, since it waits for its
threads. So they are closed by number. That says nothing to the other side: the parent has the connection still.

Which ones they are the kernel knows: each thread of a context has an epoll descriptor, made with the context's first
socket, and ``/proc/self/fdinfo`` lists what is registered in it (proc(5)). Sockets that listen get there a moment after
they were bound, so they are looked for when that was done. Other systems than Linux have no epoll; there a child closes
nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
from collections.abc import Callable
from typing import TypeVar

import gevent.monkey

__all__ = ["Descriptors", "socket_copy"]

log = logging.getLogger("greentx.transport")

T = TypeVar("T")

_FOLDER = "/proc/self/fd"
_EPOLL = "anon_inode:[eventpoll]"
_REGISTERED = re.compile(r"^tfd:\s*([0-9]+).*? ino:([0-9a-f]+)", re.MULTILINE)

_KEEPS = "a forked child keeps ZeroMQ's connections, which could not be listed: %s"

# gevent's own closes later, in a round of a loop that the child need not run.
_close = gevent.monkey.get_original("os", "close")

# Two contexts that begin in two threads at once must not get each other's.
_beginning = gevent.monkey.get_original("_thread", "allocate_lock")()


class Descriptors:
    """Those of one context."""

    def __init__(self) -> None:
        self._begun = False
        self._epolls: set[int] = set()
        self._listening: set[tuple[int, int]] = set()
        # Number and inode of each, as they were before the fork: only what is the same in the child is closed.
        self._noted: set[tuple[int, int]] = set()

    def make(self, make: Callable[[], T]) -> T:
        """Return what *make* returns; it makes a socket, and with the first one the context's threads."""
        if self._begun:
            return make()
        with _beginning:
            before = _open(_EPOLL)
            made = make()
            self._begun = True
            self._epolls = {number for number, _inode in _open(_EPOLL) - before}
            return made

    def bind(self, bind: Callable[[], object]) -> None:
        """Call *bind*, which binds a socket."""
        before = _open("socket:")
        bind()
        self._listening |= {one for one in _open("socket:") - before if _listens(one[0])}

    def note(self) -> None:
        """A fork is about to come."""
        self._listening = {one for one in self._listening if _is_same(*one)}
        self._noted = self._listening | _numbers_of(self._epolls)

    def close_inherited(self) -> None:
        """This is the forked child: close its copies."""
        # The threads went on while it was forked. Only sockets have an inode each, so only these are told from others.
        late = _numbers_of(self._epolls) & _open("socket:")
        for number, inode in self._noted | late:
            if _is_same(number, inode):
                _close(number)
        for numbers in (self._epolls, self._listening, self._noted):
            numbers.clear()


def _open(kind: str) -> set[tuple[int, int]]:
    """Return number and inode of all open descriptors of a kind."""
    found: set[tuple[int, int]] = set()
    try:
        names = os.listdir(_FOLDER)
    except FileNotFoundError:  # not Linux
        return found
    except OSError as error:  # a lack of descriptors
        log.warning(_KEEPS, error)
        return found
    for name in names:
        with contextlib.suppress(OSError):  # the one that the list was read by
            if os.readlink(f"{_FOLDER}/{name}").startswith(kind):
                found.add((int(name), _inode(int(name))))
    return found


def _numbers_of(epolls: set[int]) -> set[tuple[int, int]]:
    """Return number and inode of them, and of all that is registered there."""
    found: set[tuple[int, int]] = set()
    for epoll in epolls:
        try:
            # Where the threads have just ended its number may be another's by now, which is not ours to close.
            if os.readlink(f"{_FOLDER}/{epoll}") != _EPOLL:
                continue
            inode = _inode(epoll)
            with open(f"/proc/self/fdinfo/{epoll}", encoding="ascii") as info:
                registered = _REGISTERED.findall(info.read())
        except OSError as error:
            # Closed by now, where the threads have just ended: nothing is left to be kept then.
            if error.errno not in (errno.EBADF, errno.ENOENT):
                log.warning(_KEEPS, error)
            continue
        found |= {(epoll, inode), *((int(one), int(its_inode, 16)) for one, its_inode in registered)}
    return found


def _inode(number: int) -> int:
    return os.fstat(number).st_ino


def _is_same(number: int, inode: int) -> bool:
    try:
        return _inode(number) == inode
    except OSError:  # closed since
        return False


def socket_copy(number: int) -> socket.socket:
    """Return a socket of a duplicate of descriptor *number*. Raises ``OSError`` for anything else."""
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        # It was not taken over: nobody else closes it.
        os.close(copy)
        raise


def _listens(number: int) -> bool:
    try:
        with socket_copy(number) as copy:
            return bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False
