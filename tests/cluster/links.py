"""What the hosts of a cluster are made of, and the links between them.

Two kinds. With ``ip`` and the right to make network namespaces (root, or user namespaces) each host is a namespace of
its own, with processes of its own, at a bridge. Else each is an address 127.x.y.z that a forwarder listens at
(``forwarder.py``), which knows by the process that connects which host it is on, and passes nothing on over a link that
is cut. Either way bytes that are sent over a cut link are lost or late, as on a network: nobody is told.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import gevent.subprocess
from ground import Ground

FOLDER = Path(__file__).parent

#: Whether namespaces are to be done without: for the tests of that, and for machines where they do not work.
WITHOUT = "GREENTX_WITHOUT_NAMESPACES"

#: What tells a forwarder on which host a process is.
HOST_VARIABLE = "GREENTX_CLUSTER_HOST"

# Nobody has it: what is sent there goes nowhere.
_NO_ADDRESS = "02:00:00:00:ff:ff"


class Links(Protocol):
    """Hosts and links of one kind."""

    #: In words, for the output of tests.
    kind: str

    def add(self, name: str) -> tuple[str, str]:
        """Make a host, or start one again that was killed; return the address that others use, and its own to bind."""

    def command(self, name: str, command: list[str]) -> list[str]:
        """Return what runs *command* on a host."""

    def listen(self, name: str, port: int) -> None:
        """Others may connect to that port of a host."""

    def cut(self, one: str, other: str) -> None:
        """Nothing gets from one host to the other, or back."""

    def heal(self, one: str, other: str) -> None:
        """It does again."""

    def kill(self, name: str) -> None:
        """The host is gone, in silence: its processes end without a word to others."""


def _prefix() -> list[str]:
    return [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]


class Keeper:
    """A process that keeps a namespace, until it is killed or its ground ends."""

    def __init__(self, ground: Ground, command: list[str]) -> None:
        self._child = ground.start([*command, "sh", "-c", "echo ready; exec cat"], log=Path(os.devnull))
        self.pid = self._child.pid
        if self._child.readline(10) != "ready\n":
            self.kill()
            raise OSError(f"{command} is not permitted")

    def child(self) -> int:
        """Return its one child: the first process of a namespace of processes."""
        return children(self.pid)[0]

    def kill(self) -> None:
        """End it, and with it what is in its namespace of processes."""
        self._child.kill()


def children(pid: int) -> list[int]:
    """Return the processes that *pid* has started and that are there."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
    return []


class Namespaces:
    """Each host is a network namespace with a veth pair to a bridge, and a namespace of processes.

    The bridge is in a namespace of its own: nothing of the machine's network changes, and all of it goes with the
    processes that keep it.

    Raises ``OSError`` where that is not permitted.
    """

    kind = "network namespaces"

    def __init__(self, ground: Ground) -> None:
        if not all(shutil.which(program) for program in ("ip", "unshare", "nsenter")):
            raise OSError("ip, unshare or nsenter is missing")
        make = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._hosts: dict[str, Keeper] = {}
        self._numbers: dict[str, int] = {}
        self._cut: set[frozenset[str]] = set()
        self._ground = ground
        self._switch = Keeper(ground, ["unshare", *make, "--net"])
        self._inside = ["nsenter", *_prefix(), "--net", "--target", str(self._switch.pid)]
        try:
            _run(self._inside, "link add br0 type bridge", "link set br0 up")
        except BaseException:  # raised again
            self.close()
            raise

    def add(self, name: str) -> tuple[str, str]:
        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        # The same Ethernet address after a restart, too: others remember it.
        mac = self._mac(name)
        keeper = Keeper(self._ground, [*self._inside, "unshare", "--net", "--pid", "--fork", "--kill-child"])
        self._hosts[name] = keeper
        _run(
            self._inside,
            f"link add p{number} type veth peer name eth0 address {mac} netns {keeper.child()}",
            f"link set p{number} master br0",
            f"link set p{number} up",
        )
        address = self._address(name)
        _run(
            self._in_host(name),
            "link set lo up",
            f"addr add {address}/24 dev eth0",
            "link set eth0 up",
        )
        for pair in self._cut:
            if name in pair:
                self._set(*pair)
        return address, address

    def _address(self, name: str) -> str:
        return f"10.77.1.{self._numbers[name]}"

    def _mac(self, name: str) -> str:
        return f"02:00:00:00:00:{self._numbers[name]:02x}"

    def _in_host(self, name: str) -> list[str]:
        return ["nsenter", *_prefix(), "--net", "--target", str(self._hosts[name].child())]

    def command(self, name: str, command: list[str]) -> list[str]:
        return ["nsenter", *_prefix(), "--net", "--pid", "--target", str(self._hosts[name].child()), *command]

    def listen(self, name: str, port: int) -> None:
        pass

    def cut(self, one: str, other: str) -> None:
        self._cut.add(frozenset((one, other)))
        self._set(one, other)

    def _set(self, one: str, other: str) -> None:
        # What they send each other goes to an Ethernet address that nobody has: lost, and nobody is told.
        for host, peer in ((one, other), (other, one)):
            if host in self._hosts:
                entry = f"{self._address(peer)} lladdr {_NO_ADDRESS} nud permanent dev eth0"
                _run(self._in_host(host), f"neigh replace {entry}")

    def heal(self, one: str, other: str) -> None:
        self._cut.discard(frozenset((one, other)))
        for host, peer in ((one, other), (other, one)):
            if host in self._hosts:
                entry = f"{self._address(peer)} lladdr {self._mac(peer)} nud reachable dev eth0"
                _run(self._in_host(host), f"neigh replace {entry}")

    def kill(self, name: str) -> None:
        keeper = self._hosts.pop(name)
        try:
            # First, so that no process says goodbye.
            _run(self._inside, f"link del p{self._numbers[name]}")
        finally:
            keeper.kill()

    def close(self) -> None:
        for keeper in [*self._hosts.values(), self._switch]:
            keeper.kill()


def _run(prefix: list[str], *lines: str) -> None:
    """Give lines to ``ip`` in a namespace. Raises ``OSError`` with what it says."""
    done = gevent.subprocess.run(
        [*prefix, "ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise OSError(f"{lines}: {done.stderr.strip()}")


class Addresses:
    """Each host is an address at which a forwarder listens; its programs bind another one, behind that."""

    kind = "addresses 127.x.y.z, with a forwarder between them"

    def __init__(self, ground: Ground, log: Path) -> None:
        # Two clusters at a time on one machine are not in each other's way.
        self._net = f"127.{77 + os.getpid() // 250 % 100}.{1 + os.getpid() % 250}"
        self._numbers: dict[str, int] = {}
        env = {"PYTHONPATH": str(FOLDER.parents[1])}
        self._forwarder = ground.start([sys.executable, str(FOLDER / "forwarder.py")], log=log, env=env)

    def _tell(self, *words: object) -> None:
        self._forwarder.write(" ".join(map(str, words)))
        answer = self._forwarder.readline(10)
        if answer != "done\n":
            raise OSError(f"{words}: the forwarder says {answer!r}")

    def add(self, name: str) -> tuple[str, str]:
        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        self._tell("add", name)
        return f"{self._net}.{number}", f"{self._net}.{number + 100}"

    def command(self, name: str, command: list[str]) -> list[str]:
        return ["env", f"{HOST_VARIABLE}={self._net}:{name}", *command]

    def listen(self, name: str, port: int) -> None:
        number = self._numbers[name]
        self._tell("listen", f"{self._net}:", name, f"{self._net}.{number}", f"{self._net}.{number + 100}", port)

    def cut(self, one: str, other: str) -> None:
        self._tell("cut", one, other)

    def heal(self, one: str, other: str) -> None:
        self._tell("heal", one, other)

    def kill(self, name: str) -> None:
        self._tell("kill", name)
        for pid in on_host(f"{self._net}:{name}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for name in self._numbers:
            for pid in on_host(f"{self._net}:{name}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._forwarder.kill()


def host_of(pid: int) -> str:
    """Return on which host a process is, as its environment says; empty for others."""
    with contextlib.suppress(OSError):
        for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = item.partition(b"=")
            if name.decode(errors="replace") == HOST_VARIABLE:
                return value.decode()
    return ""


def on_host(host: str) -> Iterator[int]:
    """Yield the processes of a host."""
    for name in os.listdir("/proc"):
        if name.isdigit() and host_of(int(name)) == host:
            yield int(name)


@contextlib.contextmanager
def links(ground: Ground, log: Path) -> Iterator[Any]:
    """Make hosts possible, of the better kind that this machine allows; all of it goes at the end of the block."""
    made: Namespaces | Addresses
    if os.environ.get(WITHOUT) == "1":
        made = Addresses(ground, log)
    else:
        try:
            made = Namespaces(ground)
        except OSError:
            made = Addresses(ground, log)
    try:
        yield made
    finally:
        made.close()
