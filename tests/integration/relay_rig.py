"""A real Mongrel2, a process that is nothing but its relay, Nodes in processes of their own, and browsers that count.

As a program: ``python relay_rig.py relay OPTIONS`` and ``python relay_rig.py node OPTIONS``, with JSON.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import zmq.green as zmq

import greentx
from greentx import GreentxError, Transceiver
from greentx.edge import Handler, Mongrel2
from greentx.edge.process import ChildProcess
from greentx.relay import Node, Relay

if __name__ != "__main__":  # it needs the other test modules, which a process of its own need not find
    from http_rig import Browser

LOCAL = "127.0.0.1"
SENDER = "relay-rig"


# -- what runs in processes of their own -------------------------------------------------------------------------------


def run_relay(options: dict[str, Any]) -> None:
    """Be a relay until SIGTERM; print where Nodes connect to, and on each line of the input the status."""
    with Transceiver(SENDER, options["pull"], options["pub"], rep_port=0, rep_ip=LOCAL) as trans:
        relay = Relay(trans, **options.get("relay", {}))
        gevent.signal_handler(signal.SIGTERM, trans.stop, 5)
        _say(relay.node_endpoint, str(trans.rep_port))
        relay.serve()


def run_node(options: dict[str, Any]) -> None:
    """Answer until SIGTERM: each request with its name, its method, its path and its body."""
    uploads: dict[str, tuple[Any, int]] = {}
    delay, busy = options.get("delay", 0.0), options.get("busy", 0.0)
    node = Node(options["endpoint"], rep_port=False, name=options["name"], connect_timeout=20, **options["node"])

    def answer(conn: Any, req: Any) -> None:
        if req.method == "DISCONNECT":
            return
        # With upload.stream a body comes in pieces, as they are asked for.
        if req.header("UPLOAD_STREAM") is not None:
            first, size = uploads.pop(req.conn_id, (req, 0))
            if req.header("UPLOAD_STREAM_DONE") is None:
                uploads[req.conn_id] = first, size + len(req.body)
                conn.grant(req, len(req.body) + 100_000 if req is first else len(req.body))
                return
            conn.reply_http(first, f"{node.name} streamed {size + len(req.body)}")
            return
        if req.stored is not None:
            conn.reply_http(req, f"{node.name} stored {len(req.body_file.read())}")
            return
        if "size" in req.query:
            conn.reply_http(req, b"x" * int(req.query["size"][0]))
            return
        seconds = float(req.query.get("sleep", [delay])[0])
        if seconds:
            gevent.sleep(seconds)
        if busy:
            until = time.monotonic() + busy
            while time.monotonic() < until:
                pass
        if "half" in req.query:
            conn.reply(req, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
            return
        again = " redelivered" if req.redelivered else ""
        conn.reply_http(req, f"{node.name} {req.method} {req.path} {req.body.decode()}{again}")

    with node:
        gevent.signal_handler(signal.SIGTERM, node.stop, 10)
        _say("ready")
        node.serve(answer)


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
        relay: Options of the Relay.
        settings: Mongrel2's.
    """

    def __init__(self, *, settings: dict[str, Any] | None = None, **relay: Any) -> None:
        self._stack = contextlib.ExitStack()
        self.nodes: dict[str, Program] = {}
        with contextlib.ExitStack() as stack:
            self.mongrel2 = Mongrel2({"/": Handler(SENDER)}, settings=settings or {})
            self.mongrel2.start()
            stack.callback(self.mongrel2.stop, 0)
            (entry,) = self.mongrel2.handlers
            options = {"pull": entry.send_spec, "pub": entry.recv_spec, "relay": relay}
            self.relay = Program("relay", options)
            stack.callback(self.relay.kill)
            self.endpoint, rep = self.relay.wait_for_lines(2)[:2]
            self.rep_port = int(rep)
            self._context = zmq.Context()
            stack.callback(self._context.destroy, 0)
            self._stack = stack.pop_all()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.kill()
        self._stack.close()

    def start_node(self, name: str, *, delay: float = 0.0, busy: float = 0.0, **options: Any) -> Program:
        """Start a Node, and return once it gets requests."""
        told = {"endpoint": self.endpoint, "name": name, "delay": delay, "busy": busy, "node": options}
        node = self.nodes[name] = Program("node", told)
        node.wait_for_lines(1)
        with gevent.Timeout(20):
            while not any(one["name"] == name and one["ready"] for one in self.status()["nodes"]):
                gevent.sleep(0.01)
        return node

    def wait_until_busy(self, name: str) -> None:
        """Block until a Node has requests, and has told that it received them."""
        with gevent.Timeout(20):
            while not any(one["name"] == name and one["open"] > one["unreceived"] for one in self.status()["nodes"]):
                gevent.sleep(0.001)

    def wait_until_settled(self, name: str) -> None:
        """Block until the relay knows that a Node has gone, and has given what that had to others."""
        with gevent.Timeout(20):
            while True:
                status = self.status()
                is_gone = all(one["name"] != name for one in status["nodes"])
                if is_gone and status["open"] == sum(one["open"] for one in status["nodes"]):
                    return
                gevent.sleep(0.01)

    def end_node(self, name: str) -> None:
        """Have a Node leave in order, and wait for that."""
        node = self.nodes.pop(name)
        node.send_signal(signal.SIGTERM)
        assert node.wait(20), node.said

    def kill_node(self, name: str) -> None:
        """End a Node as a lack of memory would."""
        self.nodes.pop(name).kill()

    def status(self) -> dict[str, Any]:
        """Return what the relay says of itself, over its control socket."""
        with contextlib.closing(self._context.socket(zmq.REQ)) as req:
            req.linger = 0
            req.connect(f"tcp://{LOCAL}:{self.rep_port}")
            req.send(b"STATUS")
            assert req.poll(10_000), "no answer to STATUS"
            told: dict[str, Any] = json.loads(req.recv())["relay"]
            return told


class Clients:
    """Browsers in closed loops: each asks, reads, checks, and asks again, over one connection while that lasts.

    Attributes:
        outcomes: What requests ended with: ``ok``; a status; ``closed``: the connection ended before the answer was
            complete; ``silent``: nothing came in time; ``refused``: there was no connection.
        wrong: Answers that were another request's.
        by_node: How many answers each Node gave.
    """

    def __init__(self, mongrel2: Mongrel2, count: int, *, method: str = "GET", path: str = "/", pause: float = 0.0):
        self.outcomes: Counter[str] = Counter()
        self.by_node: Counter[str] = Counter()
        self.wrong: list[bytes] = []
        self.redelivered = 0
        self._mongrel2 = mongrel2
        self._method = method
        self._path = path
        self._pause = pause
        self._stop = False
        self._loops = [gevent.spawn(self._loop, number) for number in range(count)]

    def _loop(self, number: int) -> None:
        asked = 0
        while not self._stop:
            try:
                browser = Browser(self._mongrel2, timeout=20)
            except OSError:
                self.outcomes["refused"] += 1
                gevent.sleep(0.1)
                continue
            with browser:
                while not self._stop:
                    asked += 1
                    outcome = self._ask(browser, b"%d.%d" % (number, asked), first=asked == 1)
                    self.outcomes[outcome] += 1
                    if self._pause:
                        gevent.sleep(self._pause)
                    if outcome != "ok":
                        break

    def _ask(self, browser: Browser, token: bytes, *, first: bool) -> str:
        path = f"{self._path}{token.decode()}"
        try:
            browser.ask(path, method=self._method, body=token if self._method != "GET" else None)
            answer = browser.receive(self._method)
        except TimeoutError:
            return "silent"
        except (OSError, GreentxError):
            return "closed"
        if answer.status != 200:
            return str(answer.status)
        node, method, asked, rest = answer.body.split(b" ", 3)
        if asked.partition(b"?")[0] != path.partition("?")[0].encode() or method != self._method.encode():
            self.wrong.append(answer.body)
        self.by_node[node.decode()] += 1
        self.redelivered += b"redelivered" in rest
        return "ok"

    def wait_for(self, count: int, timeout: float = 30.0) -> None:
        """Block until so many requests more have ended."""
        until = sum(self.outcomes.values()) + count
        with gevent.Timeout(timeout):
            while sum(self.outcomes.values()) < until:
                gevent.sleep(0.005)

    def stop(self) -> Counter[str]:
        """Have each finish its request; return the outcomes."""
        self._stop = True
        gevent.joinall(self._loops, timeout=30, raise_error=True)
        assert all(one.dead for one in self._loops)
        return self.outcomes


@contextlib.contextmanager
def clients(cluster: Cluster, count: int, **options: Any) -> Iterator[Clients]:
    """Browsers that are stopped after the block."""
    them = Clients(cluster.mongrel2, count, **options)
    try:
        yield them
    finally:
        them.stop()


if __name__ == "__main__":
    {"relay": run_relay, "node": run_node}[sys.argv[1]](json.loads(sys.argv[2]))
