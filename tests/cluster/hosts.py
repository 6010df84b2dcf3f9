"""A cluster on one machine: hosts with addresses of their own, programs on them, links that can be cut.

With a block of :func:`cluster` everything goes: processes, namespaces, folders, whatever happens inside. What programs
do is in ``member.py``; what hosts are is in ``links.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
from ground import Ground
from links import Links, children, links

FOLDER = Path(__file__).parent

#: Seconds that a program may take to start, and to answer.
START_SECONDS = 30.0
ANSWER_SECONDS = 15.0


class Program:
    """One role of ``member.py`` on a host. It is asked by lines, and killed with the block of its cluster.

    Attributes:
        host: Where it runs.
        said: What it said of itself when it was ready.
    """

    def __init__(self, host: Host, role: str, options: dict[str, Any]) -> None:
        self.host = host
        cluster = host.cluster
        self._log = cluster.folder / f"{host.name}-{role}.log"
        self._child = cluster.ground.start(
            cluster.links.command(host.name, [sys.executable, str(FOLDER / "member.py"), role, json.dumps(options)]),
            log=self._log,
            env={"PYTHONPATH": str(FOLDER.parents[1]), "TMPDIR": str(cluster.folder)},
        )
        self.said: Any = None

    def wait_ready(self, timeout: float = START_SECONDS) -> Program:
        """Wait until it said what it says when it is ready."""
        self.said = self._read(timeout)
        return self

    def ask(self, command: str, timeout: float = ANSWER_SECONDS, **options: Any) -> Any:
        """Have it do something; return its answer. Fails where it gives none, or an error."""
        self._child.write(json.dumps({"command": command, **options}))
        return self._read(timeout)

    def _read(self, timeout: float) -> Any:
        line = self._child.readline(timeout)
        assert line is not None, f"{self} said nothing for {timeout:g} s{self.last_words()}"
        assert line, f"{self} ended with {self._child.status()}{self.last_words()}"
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{self}: {answer['error']}")
        return answer

    def signal(self, number: int) -> None:
        """Send it a signal: SIGSTOP, SIGCONT, SIGTERM, SIGKILL."""
        # What enters a namespace of processes forks, and waits for the program: its own process is not the program's.
        enters = Path(f"/proc/{self._child.pid}/comm").read_text().strip() == "nsenter"
        for pid in [*children(self._child.pid), self._child.pid] if enters else [self._child.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, timeout: float = ANSWER_SECONDS) -> int:
        """Wait for its end; return its status."""
        until(lambda: self._child.status() is not None, f"the end of {self}", timeout)
        return int(self._child.status() or 0)

    def kill(self) -> None:
        """End it at once."""
        if self._child.status() is None:
            self.signal(signal.SIGKILL)
        self._child.kill()

    def log(self) -> str:
        """Return what it, and those before it on this host in its role, wrote to standard error."""
        return self._log.read_text(errors="replace")

    def last_words(self) -> str:
        """Return the last lines of that, for messages."""
        return "".join(f"\n    {line}" for line in self.log().splitlines()[-12:])

    def __repr__(self) -> str:
        return f"<{self._log.stem}>"


class Host:
    """A host of a cluster.

    Attributes:
        name: Of its own.
        address: By which others reach it.
        own_address: What its programs bind. With namespaces it is the same.
        cluster: To which it belongs.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.cluster = cluster
        self.address, self.own_address = cluster.links.add(name)
        self._programs: list[Program] = []
        self._ports: set[int] = set()

    def listen(self, *ports: int) -> None:
        """Its programs will bind these ports, and others connect to them."""
        for port in ports:
            if port not in self._ports:
                self._ports.add(port)
                self.cluster.links.listen(self.name, port)

    def run(self, role: str, **options: Any) -> Program:
        """Start a program. Does not wait for it: see :meth:`Program.wait_ready`."""
        program = Program(self, role, options)
        self._programs.append(program)
        return program

    def kill(self) -> None:
        """It is gone, as by a power cut: nothing more comes from it, not even the end of a connection."""
        self.cluster.links.kill(self.name)
        for program in self._programs:
            program.kill()
        self._programs.clear()

    def start(self) -> None:
        """Have it there again, with the same address, and nothing running."""
        self.cluster.links.add(self.name)

    def close(self) -> None:
        """End its programs."""
        for program in self._programs:
            program.kill()
        self._programs.clear()


class Cluster:
    """Hosts by name, and their links. Made by :func:`cluster`.

    Attributes:
        ground: What starts their programs.
        links: What they are made of.
        folder: For the temporary files and logs of programs.
        hosts: All of them.
    """

    def __init__(self, ground: Ground, made: Links, folder: Path) -> None:
        self.ground = ground
        self.links = made
        self.folder = folder
        self.hosts: dict[str, Host] = {}

    def host(self, name: str) -> Host:
        """Make a host."""
        assert name not in self.hosts
        host = self.hosts[name] = Host(self, name)
        return host

    def cut(self, one: Host, other: Host) -> None:
        """Cut the link between two hosts."""
        self.links.cut(one.name, other.name)

    def heal(self, one: Host, other: Host) -> None:
        """Have it work again."""
        self.links.heal(one.name, other.name)

    @contextlib.contextmanager
    def cut_off(self, one: Host, other: Host) -> Iterator[None]:
        """Inside of the block the link is cut."""
        self.cut(one, other)
        try:
            yield
        finally:
            self.heal(one, other)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Make a cluster without hosts; say in the output of which kind."""
    folder = Path(tempfile.mkdtemp(prefix="greentx-cluster-"))
    try:
        with contextlib.closing(Ground(folder)) as ground, links(ground, folder / "forwarder.log") as made:
            sys.stdout.write(f"hosts are {made.kind}\n")
            one = Cluster(ground, made, folder)
            try:
                yield one
            except BaseException:  # raised again
                for log in sorted(folder.glob("*.log")):
                    sys.stdout.write(f"-- {log.stem}\n{log.read_text(errors='replace')[-3000:]}")
                raise
            finally:
                for host in one.hosts.values():
                    host.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], object], what: str, timeout: float = ANSWER_SECONDS) -> None:
    """Wait until *condition* holds, asked ten times a second, since it may ask a program."""
    with gevent.Timeout(timeout, AssertionError(f"in vain waited {timeout:g} s for {what}")):
        while not condition():
            gevent.sleep(0.1)


__all__ = ["Cluster", "Host", "Program", "cluster", "until"]
