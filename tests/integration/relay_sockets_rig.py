"""A real Mongrel2, a relay and Nodes in processes of their own, and browsers whose WebSockets number what they say.

As a program: ``python relay_sockets_rig.py relay OPTIONS`` and ``python relay_sockets_rig.py node OPTIONS``, with JSON.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore

import greentx
from greentx import Transceiver, WebSocket
from greentx.edge import Handler, Mongrel2
from greentx.edge.process import ChildProcess
from greentx.protocol.websocket.frames import Opcode
from greentx.relay import Node, Relay

LOCAL = "127.0.0.1"
SENDER = "relay-sockets"

#: Of each message of a flood.
FLOOD_BYTES = 50_000


# -- what runs in processes of their own -------------------------------------------------------------------------------


def run_relay(options: dict[str, Any]) -> None:
    """Be a relay until SIGTERM; print where Nodes connect to, and where the control socket is."""
    with Transceiver(SENDER, options["pull"], options["pub"], rep_port=0, rep_ip=LOCAL, **options["trans"]) as trans:
        relay = Relay(trans, **options["relay"])
        gevent.signal_handler(signal.SIGTERM, trans.stop, 5)
        _say(relay.node_endpoint, str(trans.rep_port))
        relay.serve()


def run_node(options: dict[str, Any]) -> None:
    """Answer each message until SIGTERM: with the Node's name, and what is known of the message and the WebSocket."""
    name, delay = options["name"], options["delay"]

    def flood(ws: WebSocket) -> None:
        """Send as many messages as were asked for, each with its number, however long that takes."""
        for number in range(int(ws.receive() or 0)):
            ws.send(str(number).encode() + b" " + b"x" * FLOOD_BYTES)
        ws.send("done")
        ws.receive()

    def talk(ws: WebSocket) -> None:
        if ws.path == "/flood":
            flood(ws)
            return
        for message in ws:
            if delay:
                gevent.sleep(delay)
            before = ws.state.get("number", 0)
            ws.state["number"] = int(message)
            ws.send(f"{name} {message!s} {int(ws.redelivered)} {int(ws.adopted)} {before}")

    with Node(options["endpoint"], rep_port=False, name=name, connect_timeout=20, **options["node"]) as node:
        gevent.signal_handler(signal.SIGTERM, node.stop, 10)
        _say("ready")
        node.serve(lambda conn, req: conn.reply_http(req, name), websocket=talk)


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


# -- the side that starts it -------------------------------------------------------------------------------------------


class Program(ChildProcess):
    """One of them.

    Attributes:
        said: The lines that it printed, also its log.
    """

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        self.said: list[str] = []
        here = Path(__file__)
        command = ["/usr/bin/env", f"PYTHONPATH={Path(greentx.__file__).parents[1]}", sys.executable, str(here)]
        super().__init__([*command, kind, json.dumps(options)], cwd=str(here.parent), on_line=self.said.append)

    def wait_for_lines(self, count: int) -> list[str]:
        """Return the first lines, once they are there."""
        with gevent.Timeout(30):
            while len(self.said) < count:
                assert self.returncode is None, self.said
                gevent.sleep(0.005)  # between two looks
        return self.said


class Cluster:
    """All of it.

    Args:
        settings: Mongrel2's.
        trans, relay: Options of the API's Transceiver and of its Relay.
    """

    def __init__(
        self, *, settings: dict[str, Any] | None = None, trans: dict[str, Any] | None = None, **relay: Any
    ) -> None:
        self.nodes: dict[str, Program] = {}
        with contextlib.ExitStack() as stack:
            self.mongrel2 = Mongrel2({"/": Handler(SENDER)}, settings=settings or {})
            self.mongrel2.start()
            stack.callback(self.mongrel2.stop, 0)
            (entry,) = self.mongrel2.handlers
            options = {"pull": entry.send_spec, "pub": entry.recv_spec, "relay": relay, "trans": trans or {}}
            self.relay = Program("relay", options)
            stack.callback(self.relay.kill)
            self.endpoint, rep = self.relay.wait_for_lines(2)[:2]
            self.rep_port = int(rep)
            self._stack = stack.pop_all()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.kill()
        self._stack.close()

    def start_node(self, name: str, *, delay: float = 0.0, **options: Any) -> Program:
        """Start a Node, and return once the relay knows it."""
        told = {"endpoint": self.endpoint, "name": name, "delay": delay, "node": options}
        node = self.nodes[name] = Program("node", told)
        node.wait_for_lines(1)
        with gevent.Timeout(20):
            while all(one["name"] != name for one in self.status()["nodes"]):
                gevent.sleep(0.01)
        return node

    def end_node(self, name: str) -> None:
        """Have a Node leave in order, and wait for that."""
        node = self.nodes.pop(name)
        node.send_signal(signal.SIGTERM)
        assert node.wait(30), node.said

    def kill_node(self, name: str) -> None:
        """End a Node as a lack of memory would."""
        self.nodes.pop(name).kill()

    def status(self) -> dict[str, Any]:
        """Return what the relay says of itself, over its control socket."""
        import zmq.green as zmq

        with zmq.Context() as context, context.socket(zmq.REQ) as req:
            req.linger = 0
            req.connect(f"tcp://{LOCAL}:{self.rep_port}")
            req.send(b"STATUS")
            assert req.poll(10_000), "no answer to STATUS"
            told: dict[str, Any] = json.loads(req.recv())["relay"]
            return told


class Browser:
    """One WebSocket that numbers what it says, and reads what is answered.

    Attributes:
        said: How many messages it has sent.
        answers: For each number, the Nodes that answered, and whether they were told that it comes again.
        nodes: Those that answered, in order, each change of it once.
        faults: What was wrong: an answer out of order, a state that is not the one before.
        closed: The connection has ended.
        longest: Seconds between two answers, at the most, while one was awaited.
    """

    def __init__(self, port: int) -> None:
        # Here, since a process of its own need not find the other test modules.
        from websocket_peer import Peer

        self.peer = Peer(port, "/")
        self.said = 0
        self.answers: dict[int, list[tuple[str, bool]]] = {}
        self.nodes: list[str] = []
        self.faults: list[str] = []
        self.closed = False
        self.longest = 0.0
        self._waits_since = 0.0
        self._reading = gevent.spawn(self._read)

    def say(self) -> None:
        """Send the next number."""
        self.said += 1
        if len(self.answers) == self.said - 1:
            self._waits_since = time.monotonic()
        self.peer.send(str(self.said))

    def _read(self) -> None:
        self.peer.head()
        while True:
            try:
                frame = self.peer.frame()
            except (AssertionError, OSError):
                self.closed = True
                return
            if frame.opcode == Opcode.PING:
                self.peer.send(frame.payload, Opcode.PONG)
            elif frame.opcode == Opcode.TEXT:
                self._on_answer(frame.payload.decode())
            else:
                self.closed = True

    def _on_answer(self, text: str) -> None:
        node, number, again, _, before = text.split()
        now = time.monotonic()
        self.longest = max(self.longest, now - self._waits_since)
        self._waits_since = now
        which, redelivered = int(number), again == "1"
        if not self.nodes or self.nodes[-1] != node:
            self.nodes.append(node)
        if which not in self.answers and which != len(self.answers) + 1:
            self.faults.append(f"{which} is not the next one: {text}")
        # What is given again may have left its state behind before.
        if int(before) != which - 1 and not (redelivered and int(before) >= which):
            self.faults.append(f"the state was another: {text}")
        self.answers.setdefault(which, []).append((node, redelivered))

    @property
    def lost(self) -> int:
        """How many messages nobody answered."""
        return self.said - len(self.answers)

    @property
    def doubled(self) -> int:
        """How many were answered twice by Nodes that were not told that they come again."""
        return sum(sum(not again for _, again in answers) > 1 for answers in self.answers.values())

    @property
    def redelivered(self) -> int:
        """How many came again."""
        return sum(again for answers in self.answers.values() for _, again in answers)

    def end(self) -> None:
        """The browser goes away."""
        self._reading.kill()
        self.peer.sock.close()


class Browsers:
    """Many of them.

    Args:
        count: How many.
    """

    def __init__(self, mongrel2: Mongrel2, count: int) -> None:
        self.all: list[Browser] = []
        opening = BoundedSemaphore(50)

        def open_one() -> None:
            with opening:
                self.all.append(Browser(mongrel2.port))

        gevent.joinall([gevent.spawn(open_one) for _ in range(count)], raise_error=True)
        self._talking: list[Any] = []
        self._goes_on = False

    def __enter__(self) -> Browsers:
        return self

    def __exit__(self, *_: object) -> None:
        self._goes_on = False
        gevent.killall(self._talking)
        for one in self.all:
            one.end()

    def talk(self, interval: float) -> None:
        """Have each say something every *interval* seconds, until :meth:`stop`."""
        self._goes_on = True
        self._talking = [
            gevent.spawn_later(interval * place / len(self.all), self._talk, one, interval)
            for place, one in enumerate(self.all)
        ]

    def _talk(self, browser: Browser, interval: float) -> None:
        while self._goes_on and not browser.closed:
            browser.say()
            gevent.sleep(interval)

    def stop(self) -> None:
        """Say nothing more, and wait until all is answered."""
        self._goes_on = False
        gevent.joinall(self._talking)
        self.wait_for(lambda one: not one.lost or one.closed)

    def wait_for(self, condition: Callable[[Browser], bool], seconds: float = 30.0) -> None:
        """Block until *condition* holds of all."""
        deadline = time.monotonic() + seconds
        while not all(map(condition, self.all)):
            assert time.monotonic() < deadline, self.summary()
            gevent.sleep(0.01)

    def summary(self) -> dict[str, Any]:
        """Return counts of all of them."""
        return {
            "said": sum(one.said for one in self.all),
            "closed": sum(one.closed for one in self.all),
            "lost": sum(one.lost for one in self.all),
            "doubled": sum(one.doubled for one in self.all),
            "redelivered": sum(one.redelivered for one in self.all),
            "faults": [fault for one in self.all for fault in one.faults][:5],
            "longest": round(max(one.longest for one in self.all), 3),
        }

    def by_node(self) -> Counter[str]:
        """Return how many are at which Node now."""
        return Counter(one.nodes[-1] for one in self.all if one.nodes)


if __name__ == "__main__":
    {"relay": run_relay, "node": run_node}[sys.argv[1]](json.loads(sys.argv[2]))
