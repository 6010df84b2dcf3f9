"""What runs on the hosts of a cluster: ``python member.py ROLE JSON``; it obeys lines of JSON on its standard input.

Its first line of output says that it is ready; each further one answers a command. It ends with its standard input.

============ =========================================================================================================
``mongrel2`` a mongrel2; ``bind``, ``port``, and ``entry``: its handler's ``send_ident``, ``send_spec``, ``recv_spec``
``handler``  a Transceiver for the mongrel2s of ``servers``, each a sender and two endpoints
``api``      the same with a relay, which binds ``node_addr``; it loads no application
``node``     a Node of the relay at ``relay_addr``, called ``name``
``browsers`` those of ``tests/chaos/harness.py``, which count what they send, and what they are answered
============ =========================================================================================================

What handlers answer, and browsers expect, is as in ``tests/chaos/chaos_handler.py``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
from gevent.fileobject import FileObject

sys.path.append(str(Path(__file__).parents[1] / "chaos"))

import chaos_handler
import harness
from speakers import Speaker, Spoken

from greentx import Transceiver
from greentx.edge import Handler, Mongrel2
from greentx.relay import Node, Relay

Commands = dict[str, Callable[..., Any]]


@contextlib.contextmanager
def mongrel2(bind: str, port: int, entry: list[Any]) -> Iterator[tuple[Any, Commands]]:
    """It reports nothing but that it is there."""
    with Mongrel2({"/": Handler(*entry)}, bind_addr=bind, port=port, transport="tcp") as server:
        yield server.pid, {}


@contextlib.contextmanager
def handler(servers: list[list[Any]], **options: Any) -> Iterator[tuple[Any, Commands]]:
    """Answers; ``status`` tells what STATUS does."""
    with _transceiver(servers, options) as trans, _running(trans, chaos_handler.serve, trans, 1000):
        yield "started", _commands(trans)


@contextlib.contextmanager
def api(servers: list[list[Any]], node_addr: list[Any], **options: Any) -> Iterator[tuple[Any, Commands]]:
    """Hands on all that comes."""
    with _transceiver(servers, options) as trans, Relay(trans, node_addr=tuple(node_addr)) as relay:
        with _running(trans, relay.serve):
            yield "started", {**_commands(trans), "relay": relay.status}


@contextlib.contextmanager
def node(relay_addr: list[Any], name: str, **options: Any) -> Iterator[tuple[Any, Commands]]:
    """Answers."""
    with Node(tuple(relay_addr), rep_port=False, name=name, **options) as trans:
        with _running(trans, chaos_handler.serve, trans, 1000):
            yield "started", _commands(trans)


@contextlib.contextmanager
def _transceiver(servers: list[list[Any]], options: dict[str, Any]) -> Iterator[Transceiver]:
    with Transceiver(*servers[0], **{"rep_port": False, **options}) as trans:
        for server in servers[1:]:
            trans.add_connection(*server)
        yield trans


def _commands(trans: Transceiver) -> Commands:
    return {"status": trans.status, "wait_ready": trans.wait_ready, "broadcast": trans.broadcast}


@contextlib.contextmanager
def _running(trans: Transceiver, serve: Callable[..., Any], *args: Any) -> Iterator[None]:
    serving = gevent.spawn(serve, *args)
    # A loop that fails must not look like one that is slow.
    serving.link_exception(lambda _: gevent.get_hub().main.throw(SystemExit("serve() failed")))
    gevent.sleep(0)
    try:
        yield
    finally:
        trans.stop(timeout=1)
        serving.join(5)


class Browsers:
    """Groups of browsers, by name, each with a count of its own."""

    def __init__(self) -> None:
        self._counts: dict[str, Any] = {}
        self._running: dict[str, list[tuple[Any, gevent.Greenlet[..., None]]]] = {}

    def start(self, group: str, kind: str, server: list[Any], number: int, **options: Any) -> int:
        """Have so many ask: callers, talkers or speakers."""
        make: Any
        make, counted = {
            "callers": (harness.Caller, harness.Tally),
            "talkers": (harness.Talker, harness.Tally),
            "speakers": (Speaker, Spoken),
        }[kind]
        count = self._counts.setdefault(group, counted())
        front: Any = SimpleNamespace(host=server[0], port=server[1])
        for _ in range(number):
            browser = make(front, count, **options)
            self._running.setdefault(group, []).append((browser, gevent.spawn(browser.run)))
        return number

    def finish(self, group: str, timeout: float = 20) -> dict[str, Any]:
        """Have a group end when what it asked is answered; return its count."""
        found = self._running.pop(group, [])
        for browser, _ in found:
            browser.end()
        greenlets = [greenlet for _, greenlet in found]
        gevent.joinall(greenlets, timeout=timeout)
        hanging = [greenlet for greenlet in greenlets if not greenlet.ready()]
        gevent.killall(hanging)
        failed = [repr(greenlet.exception) for greenlet in greenlets if greenlet.exception]
        return {"count": self.count(group), "hanging": len(hanging), "failed": failed}

    def count(self, group: str) -> dict[str, Any]:
        """Return the count of a group so far."""
        count = vars(self._counts[group])
        # Not dataclasses.asdict(), which makes a Counter of a Counter's items.
        return {**count, "lost": [vars(one) if isinstance(one, harness.Lost) else one for one in count["lost"]]}


@contextlib.contextmanager
def browsers() -> Iterator[tuple[Any, Commands]]:
    """They count themselves."""
    all_of_them = Browsers()
    yield "ready", {name: getattr(all_of_them, name) for name in ("start", "finish", "count")}


ROLES: dict[str, Callable[..., contextlib.AbstractContextManager[tuple[Any, Commands]]]] = {
    "mongrel2": mongrel2,
    "handler": handler,
    "api": api,
    "node": node,
    "browsers": browsers,
}


def main() -> None:
    """Play the role until standard input ends."""
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(levelname)s %(name)s: %(message)s")
    with ROLES[sys.argv[1]](**json.loads(sys.argv[2])) as (said, commands):
        _say(said)
        for line in FileObject(sys.stdin.buffer, "rb"):
            options = json.loads(line)
            try:
                _say(commands[options.pop("command")](**options))
            except Exception as error:
                logging.exception("%s failed", options)
                _say({"error": repr(error)})


def _say(answer: Any) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
