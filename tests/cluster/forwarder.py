"""Carries bytes between the hosts of a cluster that are addresses of one machine; see ``links.py``.

It obeys lines on its standard input, and answers each ``done``. It ends with that. A connection whose link is cut stays
open and nothing gets through it, in no direction, the end neither; one that begins meanwhile waits.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable

import gevent
from gevent import socket
from gevent.event import Event
from gevent.fileobject import FileObject
from gevent.server import StreamServer
from links import host_of

_SIZE = 65536


class Forwarder:
    def __init__(self) -> None:
        self._whole: defaultdict[frozenset[str], Event] = defaultdict(_set)
        self._gone: set[str] = set()
        self._pipes: defaultdict[str, set[gevent.Greenlet]] = defaultdict(set)
        self._servers: list[StreamServer] = []
        self._processes: dict[int, str] = {}

    def obey(self, word: str, *words: str) -> None:
        commands: dict[str, Callable[..., None]] = {
            "add": self.add,
            "listen": self.listen,
            "cut": self.cut,
            "heal": self.heal,
            "kill": self.kill,
        }
        commands[word](*words)

    def add(self, name: str) -> None:
        """A host begins, or begins again: what its connections were is forgotten."""
        gevent.killall(list(self._pipes.pop(name, ())))
        self._gone.discard(name)
        for pair, event in self._whole.items():
            if name in pair and not pair & self._gone:
                event.set()

    def kill(self, name: str) -> None:
        """What comes from there or goes there waits, until it begins again."""
        self._gone.add(name)
        for pair, event in self._whole.items():
            if name in pair:
                event.clear()

    def cut(self, one: str, other: str) -> None:
        self._whole[frozenset((one, other))].clear()

    def heal(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        if not pair & self._gone:
            self._whole[pair].set()

    def listen(self, cluster: str, name: str, address: str, behind: str, port: str) -> None:
        def serve(sock: socket.socket, peer: tuple[str, int]) -> None:
            self._serve(sock, self._host_of_peer(cluster, peer), name, (behind, int(port)))

        server = StreamServer((address, int(port)), serve)
        server.start()
        self._servers.append(server)

    def _serve(self, sock: socket.socket, client: str, name: str, target: tuple[str, int]) -> None:
        whole = self._whole[frozenset((client, name))]
        me = gevent.getcurrent()
        for host in (client, name):
            self._pipes[host].add(me)
        with sock, contextlib.suppress(OSError):
            whole.wait()
            with socket.create_connection(target) as behind:
                for one in (sock, behind):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                back = gevent.spawn(_copy, behind, sock, whole)
                try:
                    _copy(sock, behind, whole)
                    back.join()
                finally:
                    back.kill()

    def _host_of_peer(self, cluster: str, peer: tuple[str, int]) -> str:
        """Return on which host the process is that owns the other end of a connection."""
        inode = _inode_of(*peer)
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            host = self._processes.get(pid)
            if host is None:
                host = host_of(pid)
                if host:
                    self._processes[pid] = host
            if host.startswith(cluster) and _has_socket(pid, inode):
                return host.removeprefix(cluster)
        return "somewhere else"


def _set() -> Event:
    event = Event()
    event.set()
    return event


def _copy(source: socket.socket, target: socket.socket, whole: Event) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_SIZE):
            whole.wait()
            target.sendall(data)
    whole.wait()
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _inode_of(address: str, port: int) -> str:
    numbers = bytes(map(int, address.split(".")))
    wanted = f"{int.from_bytes(numbers, sys.byteorder):08X}:{port:04X}"
    with open("/proc/net/tcp") as file:
        for line in file:
            fields = line.split()
            if fields[1] == wanted and fields[9] != "0":
                return f"socket:[{fields[9]}]"
    return ""


def _has_socket(pid: int, inode: str) -> bool:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}") == inode:
                    return True
    return False


def main() -> None:
    """Obey."""
    forwarder = Forwarder()
    for line in FileObject(sys.stdin.buffer, "rb"):
        try:
            forwarder.obey(*line.decode().split())
        except OSError as error:
            answer = str(error)
        else:
            answer = "done"
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
