"""A server that stands in for Mongrel2, an API behind it, and Nodes behind that, all in this process."""

from __future__ import annotations

import contextlib
import time

import gevent
import zmq.green as zmq
from free_ports import Server

from greentx import Transceiver
from greentx.relay import Node, Relay
from greentx.relay.messages import parse_welcome, parts, split

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


class BareNode:
    """A Node that says what it is told to say, and answers nothing."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._messages: list[bytes] = []
        context = zmq.Context()
        chain.stack.callback(context.destroy, 0)
        self._dealer = context.socket(zmq.DEALER)
        self._dealer.connect(chain.relay.node_endpoint)
        self.say(b'hello 1\n{"name": "bare", "capacity": 1, "what": ""}')
        words, payload = self.next(b"welcome")
        self.word = parse_welcome(words, payload).servers[0].word.encode()
        self.say(b"ready %b\n" % self.word)
        wait_until(lambda: any(session.ready for session in chain.relay.nodes))

    def say(self, message: bytes) -> None:
        """Tell the relay something."""
        self._dealer.send(message)

    def next(self, kind: bytes) -> tuple[list[bytes], bytes]:
        """Wait for the next message of a kind, and return its words and its bytes."""
        while self._messages or self._dealer.poll(5000):
            if not self._messages:
                self._messages += parts(self._dealer.recv())
            found, words, payload = split(self._messages.pop(0))
            if found == kind:
                return words, payload
        raise AssertionError(f"no {kind!r}")

    def event(self) -> bytes:
        """Wait for the next one, and return its bytes."""
        return self.next(b"event")[1]

    def request(self) -> bytes:
        """Wait for the next one, and return its number."""
        words, _ = self.next(b"request")
        return words[0]

    def end(self) -> None:
        """End, once all that it said was read."""
        wait_until(self._all_read)
        self._dealer.close(1000)

    def linger_and_die(self) -> None:
        """End behind what it said, whatever it was not told."""
        self._dealer.close(1000)

    def die(self) -> None:
        """End, whatever was not read."""
        self._dealer.close(0)

    def _all_read(self) -> bool:
        # All that it was sent, however much; notices may come meanwhile.
        self.say(b"received 1000 1000\n")
        return not any(session.lane.unreceived for session in self._chain.relay.nodes)


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
