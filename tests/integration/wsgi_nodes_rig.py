"""WSGI servers on Nodes, behind one relay and a real mongrel2: in this process, or in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
from front_ends import started
from gevent import subprocess

import greentx
from greentx import Transceiver
from greentx.edge import Handler, Mongrel2
from greentx.relay import Node, Relay
from greentx.wsgi import WSGIServer
from greentx.wsgi.listeners import SETTINGS

SENDER = "wsgi-nodes"
PROGRAM = Path(__file__).with_name("wsgi_node.py")

# Nodes and the relay find each other at once; a machine that does other things may take its time.
READY_SECONDS = 20.0


class Api(SimpleNamespace):
    """What hands on: ``mongrel2``, ``trans``, ``relay``; and ``port``, for browsers."""

    @property
    def port(self) -> int:
        return int(self.mongrel2.port)

    def wait_for(self, *names: str) -> None:
        """Wait until the relay has these Nodes, and they can answer."""
        with gevent.Timeout(READY_SECONDS):
            while not set(names) <= {session.name for session in self.relay.nodes if session.ready}:
                gevent.sleep(0.01)

    def wait_until_gone(self, name: str) -> None:
        """Wait until the relay has no Node of that name."""
        with gevent.Timeout(READY_SECONDS):
            while any(session.name == name for session in self.relay.nodes):
                gevent.sleep(0.01)


@contextlib.contextmanager
def relaying(
    settings: dict[str, int | str] | None = None, *, upload_store: str | None = None, **options: Any
) -> Iterator[Api]:
    """Run a mongrel2 with the settings of our own front end, and a relay behind it; *options* are the relay's."""
    handler = Handler(SENDER)
    with started(Mongrel2({"/": handler, "*": handler}, settings={**SETTINGS, **(settings or {})})) as mongrel2:
        (entry,) = set(mongrel2.handlers)
        trans = Transceiver(
            SENDER,
            entry.send_spec,
            entry.recv_spec,
            rep_port=False,
            server_control=mongrel2.control_spec,
            linger=0.5,
            upload_store=upload_store,
            handshake_events=True,
        )
        with trans, Relay(trans, **options) as relay:
            trans.wait_ready(READY_SECONDS)
            serving = gevent.spawn(relay.serve)
            gevent.sleep(0)
            try:
                yield Api(mongrel2=mongrel2, trans=trans, relay=relay)
            finally:
                trans.stop(2)
                serving.join(5)
                assert serving.dead


@contextlib.contextmanager
def serving_at(
    api: Api, application: Any, name: str | None = None, *, upload_store: str | None = None, **options: Any
) -> Iterator[WSGIServer]:
    """Run a server on a Node in this process."""
    node = Node(api.relay.node_endpoint, rep_port=False, name=name, upload_store=upload_store)
    server = WSGIServer(node, application, **{"log": None, **options})
    server.start()
    try:
        api.wait_for(node.name)
        yield server
    finally:
        server.stop(2)
        api.wait_until_gone(node.name)


class OneNode:
    """A WSGI server on one Node with all that it needs, made as the other servers under test are."""

    def __init__(self, address: Any, application: Any, **options: Any) -> None:
        self._application = application
        self._options = options
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        with contextlib.ExitStack() as stack:
            api = stack.enter_context(relaying())
            self.server = stack.enter_context(serving_at(api, self._application, **self._options))
            self.server_port = api.port
            self._stack = stack.pop_all()

    def stop(self, timeout: float) -> None:
        self._stack.close()


class NodeProcess:
    """A WSGI server on a Node in a process of its own, which serves all of ``wsgi_node``'s applications."""

    def __init__(self, api: Api, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gevent.monkey", str(PROGRAM), api.relay.node_endpoint, name],
            env={**os.environ, "PYTHONPATH": f"{Path(greentx.__file__).parents[1]}:{PROGRAM.parent}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with gevent.Timeout(READY_SECONDS * 2):
            assert self.process.stdout.readline() == "serves\n", self.process.stderr.read()

    def end(self, number: int = signal.SIGTERM) -> list[str]:
        """Send a signal, wait for the end, and return what it complained of, line by line.

        Not that the relay is away: that is in the tests' process, which stands still now and then. Nor what Engine.IO
        says of clients that poll while they disconnect, in one process as well.
        """
        self.process.send_signal(number)
        with gevent.Timeout(40):
            errors: str = self.process.stderr.read()
            self.process.wait()
        usual = ("no relay at ", "Session is disconnected")
        return [line for line in errors.splitlines() if not any(text in line for text in usual)]

    def close(self) -> None:
        """Kill it where it still runs."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@contextlib.contextmanager
def node_processes(api: Api, *names: str) -> Iterator[list[NodeProcess]]:
    """Run some, and wait until the relay has them all."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for name in names:
            nodes.append(NodeProcess(api, name))
            stack.callback(nodes[-1].close)
        api.wait_for(*names)
        yield nodes
