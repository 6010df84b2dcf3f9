"""Programs in a network of their own, where every port is free: those that take the default ports 9997, 9998, 9999.

Run as a program this file makes the network's only interface ``eth0`` with the address 10.77.0.2 and a public one,
beside 127.0.0.0/8, and keeps the network until its standard input ends. It does so with the system calls of old, since
neither ``ip`` nor another kind of interface is everywhere: it renames the loopback one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

#: Addresses in the network: of ``eth0``, and one where nobody is unless a test puts somebody there.
ADDRESS = "10.77.0.2"
PUBLIC_ADDRESS = "203.0.113.7"
NOBODY = "127.0.0.5"

DEFAULT_PORTS = (9997, 9998, 9999)

# Of <linux/sockios.h> and <linux/if.h>.
_SET_NAME, _SET_FLAGS, _SET_ADDRESS, _SET_MASK = 0x8923, 0x8914, 0x8916, 0x891C
_UP = struct.pack("H", 1)


class Program:
    """A Python program, which is killed in the end; what it prints is read line by line."""

    def __init__(self, child: Any) -> None:
        self.child = child

    def line(self, timeout: float = 10.0) -> str:
        """Return its next line. Fails where it ended without, or says nothing for *timeout* seconds."""
        import gevent

        with gevent.Timeout(timeout, AssertionError(f"the program said nothing for {timeout} s")):
            text = self.child.stdout.readline()
        assert text.endswith("\n"), f"the program ended with {self.child.wait(5)} after {text!r}"
        return str(text[:-1])

    def end(self, timeout: float = 10.0) -> int:
        """Wait for its end; return its exit status."""
        code = self.child.wait(timeout=timeout)
        assert code is not None, f"the program did not end within {timeout} s"
        return int(code)

    def tell(self, text: str) -> None:
        """Write a line to its standard input."""
        self.child.stdin.write(text + "\n")
        self.child.stdin.flush()


class Network:
    """Where programs run.

    Attributes:
        address: The first IPv4 address of ``eth0``, by which they reach one another.
    """

    def __init__(self, prefix: list[str], address: str, stack: contextlib.ExitStack) -> None:
        self.address = address
        self._prefix = prefix
        self._stack = stack

    def start(self, source: str) -> Program:
        """Run Python source, until the network ends at the latest."""
        return self._stack.enter_context(_program([*self._prefix, sys.executable, "-c", source]))


@contextlib.contextmanager
def own_network() -> Iterator[Network]:
    """Make a network; where that is not permitted, the machine's own does whose default ports nobody has.

    Fails, with what to do, where there is neither.
    """
    with contextlib.ExitStack() as stack:
        # Ordinary users may where the system lets them have user namespaces.
        make, enter = ([], []) if os.geteuid() == 0 else (["--map-root-user"], ["--user", "--preserve-credentials"])
        if shutil.which("unshare") and shutil.which("nsenter"):
            keeper = stack.enter_context(_program(["unshare", *make, "--net", sys.executable, __file__]))
            if keeper.child.stdout.readline() == "ready\n":
                # unshare has become the interpreter that keeps the network.
                yield Network(["nsenter", *enter, "--net", "--target", str(keeper.child.pid)], ADDRESS, stack)
                return
        yield Network([], stack.enter_context(_machine_s_own()), stack)


@contextlib.contextmanager
def _machine_s_own() -> Iterator[str]:
    """Have the machine's default ports alone, among tests; yield its address."""
    import pytest

    from greentx.transport.endpoints import default_address

    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for port in DEFAULT_PORTS:
            with socket.socket() as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    one.bind(("0.0.0.0", port))
                except OSError as error:
                    pytest.fail(
                        "no network of its own could be made (unshare --net: run as root, or permit user namespaces), "
                        f"and on this machine port {port} is taken: {error.strerror}",
                        pytrace=False,
                    )
        yield default_address()


@contextlib.contextmanager
def _program(command: list[str]) -> Iterator[Program]:
    import gevent.subprocess

    # The package under test is the one beside this file.
    child = gevent.subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Program(child)
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def _set(sock: socket.socket, what: int, interface: str, value: bytes) -> None:
    fcntl.ioctl(sock, what, struct.pack("16s24s", interface.encode(), value))


def _address(text: str) -> bytes:
    return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(text))


def main() -> None:
    """Set up ``eth0``, say so, and wait."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _set(sock, _SET_NAME, "lo", b"eth0")
        _set(sock, _SET_FLAGS, "eth0", _UP)
        for interface, address, mask in (
            ("eth0", ADDRESS, "255.255.255.0"),
            ("eth0:0", "127.0.0.1", "255.0.0.0"),
            ("eth0:1", PUBLIC_ADDRESS, "255.255.255.0"),
        ):
            _set(sock, _SET_ADDRESS, interface, _address(address))
            _set(sock, _SET_MASK, interface, _address(mask))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
