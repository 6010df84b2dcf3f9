"""A server that stands in for Mongrel2, an API behind it, and Nodes behind that, all in this process."""

from __future__ import annotations

import contextlib
import time

import gevent
from free_ports import Server

from greentx import Transceiver
from greentx.relay import Node, Relay

LOCAL = "127.0.0.1"
SENDER = "front"


def wait_until(condition, timeout=10.0):
    """Let other greenlets run until *condition* holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        gevent.sleep(0.002)  # between two looks


class Chain:
    """A server, an API and, on demand, Nodes.

    Args:
        stack: What ends them.
        options: The relay's.
    """

    def __init__(self, stack: contextlib.ExitStack, **options) -> None:
        self.stack = stack
        self.server = stack.enter_context(Server(SENDER, ip=LOCAL))
        self.push = (LOCAL, self.server.push_port)
        self.sub = (LOCAL, self.server.sub_port)
        self.api = stack.enter_context(self.make_api())
        self.relay = Relay(self.api, **{"pub_addr": (LOCAL, 0), "send_timeout": 5, **options})
        self.nodes: list[Node] = []

    def make_api(self, **options) -> Transceiver:
        options = {"rep_port": 0, "rep_ip": LOCAL, "connect_timeout": 5, "ping_timeout": None, **options}
        return Transceiver(SENDER, self.push, self.sub, **options)

    def make_node(self, **options) -> Node:
        options = {"rep_port": False, "connect_timeout": 5, "ping_timeout": None, **options}
        return Node(self.relay.node_endpoint, **options)

    def node(self, handler=None, *, websocket=None, **options) -> Node:
        """Start a Node that serves, and return once the relay gives it requests."""
        node = self.stack.enter_context(self.make_node(**options))
        self.nodes.append(node)
        if handler is not None or websocket is not None:
            self.serve(node, handler, websocket=websocket)
        wait_until(lambda: any(session.name == node.name and session.ready for session in self.relay.nodes))
        return node

    def serve(self, transceiver, handler, *, websocket=None):
        """Have a transceiver call *handler* until the end."""
        serving = gevent.spawn(transceiver.serve, handler, websocket=websocket)
        # Whoever enters last leaves first: before its transceiver.
        self.stack.callback(serving.join, 5)
        self.stack.callback(transceiver.stop, 2)

    def relay_all(self):
        """Have the relay forward all that comes, as a process does that is nothing but a relay."""
        serving = gevent.spawn(self.relay.serve)
        self.stack.callback(serving.join, 5)
        self.stack.callback(self.api.stop, 2)
        gevent.sleep(0)  # it begins

    def forward_all(self, headers=None):
        """Have the API forward all that it gets."""
        self.serve(self.api, lambda conn, req: self.relay.forward(req, headers))

    def client(self, protocol="http"):
        """Return one more pretended browser."""
        return self.server.client(protocol)


def say(text):
    """Return a handler that answers *text*, and what it was asked."""
    return lambda conn, req: conn.reply_http(req, f"{text}: {req.method} {req.path} {req.body.decode()}")


def delayed(transceiver, seconds):
    """Have all that a transceiver sends arrive later, in its order, as over a slow network or from a busy machine."""
    for connection in transceiver.connections.values():
        send = connection.link.writer.pipe.send_now
        connection.link.writer.pipe.send_now = lambda message, flags, send=send: gevent.spawn_later(
            seconds, send, message, flags
        )
