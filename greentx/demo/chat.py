"""A chat in one page: greentx behind a front end that it starts itself.

    greentx demo [--port 8000] [--host 0.0.0.0] [--mongrel2]

Messages are JSON objects with a ``type``. A page sends ``name`` (the first one joins), with a ``value`` and perhaps the
``token`` that it got before, and ``say``, with a ``value``. It gets

* ``you``: its own ``id``, ``name`` and ``token``, and ``people``; when it joins, with the last ``say`` events in
  ``history``. Only the server says who somebody is: names are unique, and whoever comes with a token is the same
  person, after a reload too;
* ``join``, ``leave`` and ``rename``, with ``who``, and all who are here in ``people``;
* ``say``, with the ``id`` of the person, ``who`` that was, the ``text``, the ``time`` and a ``key`` of the message;
* ``error``, with a ``text``, for what makes no sense. The WebSocket stays open.
"""

from __future__ import annotations

import collections
import json
import re
import secrets
import signal
import time
import unicodedata
from pathlib import Path

import gevent

from ..edge import Handler, Keeper, Mongrel2
from ..edge.choice import make_front_end
from ..edge.front_end import FrontEndProcess
from ..handler.connection import Connection
from ..handler.transceiver import Transceiver
from ..handler.websocket import WebSocket
from ..protocol.request import Request

__all__ = ["Chat", "run"]

PAGE = (Path(__file__).parent / "chat.html").read_bytes()
HTML = {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-cache"}
MAX_NAME = 24
MAX_TEXT = 1000
MAX_HISTORY = 100
MAX_KNOWN = 1000
# What Python calls printable and nobody sees: joiners and variation selectors (Unicode: Default_Ignorable_Code_Point),
# the fillers of Hangul, the Braille pattern without dots.
UNSEEN = re.compile(
    "[\\u034f\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u2800\\u3164\\ufe00-\\ufe0f\\uffa0\\U000e0100-\\U000e01ef]"
)


class Person:
    """Somebody who is here, or was."""

    def __init__(self, number: int) -> None:
        self.id = number
        self.name = ""
        self.token = secrets.token_urlsafe(16)


class Chat:
    """The people who are here; answers for the page and for its WebSocket."""

    def __init__(self, trans: Transceiver) -> None:
        self.trans = trans
        self.people: dict[WebSocket, Person] = {}
        # By token, those that come back may; the oldest are forgotten.
        self.known: dict[str, Person] = {}
        self.history: collections.deque[dict[str, object]] = collections.deque(maxlen=MAX_HISTORY)
        self.counter = 0
        self.run = secrets.token_hex(4)

    def answer(self, conn: Connection, req: Request) -> None:
        """Serve the page at ``/``."""
        if req.method == "DISCONNECT":
            return
        if req.path == "/":
            conn.reply_http(req, PAGE, headers=HTML)
        else:
            conn.reply_http(req, "There is only a page at /.\n", 404, "Not Found")

    def talk(self, ws: WebSocket) -> None:
        """Carry what one person says to all, and tell all when that person comes and goes."""
        try:
            for message in ws:
                try:
                    self.hear(ws, message)
                except ValueError as error:
                    ws.send(json.dumps({"type": "error", "text": str(error)}))
        finally:
            person = self.people.pop(ws, None)
            if person is not None and person not in self.people.values():
                self.tell("leave", person)

    def hear(self, ws: WebSocket, message: str | bytes) -> None:
        """Act on one message; raise ``ValueError``, with a text for people, where it makes no sense."""
        kind, value, token = read(message)
        person = self.people.get(ws)
        if kind == "name":
            # The page says it of the one who reads it.
            if "(you)" in alike(value).replace(" ", ""):
                raise ValueError("nobody is called (you)")
            if person is None:
                self.let_in(ws, value, token)
            else:
                self.rename(person, value)
        elif kind != "say":
            raise ValueError(f"the type is name or say, not {kind!r}"[:100])
        elif person is None:
            raise ValueError("say your name first")
        elif value:
            if len(value) > MAX_TEXT:
                raise ValueError(f"that has {len(value)} characters, {MAX_TEXT} are the most")
            said = {"key": self.next_key(), "text": value, "time": int(time.time() * 1000)}
            self.history.append({"type": "say", "id": person.id, "who": person.name, **said})
            self.send(self.history[-1])

    def let_in(self, ws: WebSocket, name: str, token: str) -> None:
        """Somebody joins, or comes back."""
        person = self.known.pop(token, None)
        if person is None:
            self.counter += 1
            person = Person(self.counter)
        self.known[person.token] = person
        while len(self.known) > MAX_KNOWN:
            del self.known[next(iter(self.known))]
        # Of a page that was reloaded the old WebSocket may still be there.
        was_here = person in self.people.values()
        self.people[ws] = person
        if not was_here:
            person.name = self.free_name(name, person)
        ws.join("chat")
        # In one message, behind which all that is said comes.
        ws.send(json.dumps({"type": "you", **self.seen_by(person), "history": list(self.history)}))
        if not was_here:
            self.tell("join", person)

    def rename(self, person: Person, name: str) -> None:
        """Give somebody another name, if that is free; else one like it."""
        old, person.name = person.name, self.free_name(name, person)
        for ws in [ws for ws, one in self.people.items() if one is person]:
            ws.send(json.dumps({"type": "you", **self.seen_by(person)}))
        if person.name != old:
            self.tell("rename", person, old=old)

    def seen_by(self, person: Person) -> dict[str, object]:
        """Return what only that person is told, and who is here."""
        return {**vars(person), "people": self.here()}

    def free_name(self, wanted: str, person: Person) -> str:
        """Return *wanted*, or something like it that nobody else has, nor is in the history."""
        # Nothing that cannot be seen, which would make two names look the same.
        wanted = visible(wanted)[:MAX_NAME].strip() or "somebody"
        taken = {alike(one.name) for one in self.people.values() if one is not person}
        taken |= {alike(str(said["who"])) for said in self.history if said["id"] != person.id}
        name, number = wanted, 2
        while alike(name) in taken:
            name, number = f"{wanted} ({number})", number + 1
        return name

    def tell(self, kind: str, person: Person, **more: object) -> None:
        """Tell everybody what became of a person, and who is here now."""
        self.send({"type": kind, "id": person.id, "who": person.name, "people": self.here(), **more})

    def here(self) -> list[dict[str, object]]:
        """Return who is here, by name."""
        people = sorted(set(self.people.values()), key=lambda one: one.name.casefold())
        return [{"id": one.id, "name": one.name} for one in people]

    def send(self, event: dict[str, object]) -> None:
        """Send an event to everybody who has joined."""
        self.trans.broadcast(json.dumps(event), group="chat")

    def next_key(self) -> str:
        """Return what names one message, also after a restart."""
        self.counter += 1
        return f"{self.run}-{self.counter}"


def read(message: str | bytes) -> tuple[object, str, str]:
    """Return the type, the value and the token of a message."""
    try:
        said = json.loads(message)
    except (ValueError, RecursionError):
        raise ValueError("that is not JSON") from None
    if not isinstance(said, dict):
        raise ValueError("that is not a JSON object")
    value, token = said.get("value"), said.get("token", "")
    if not isinstance(value, str) or not isinstance(token, str):
        raise ValueError("value and token have to be text")
    return said.get("type"), " ".join(value.split()), token


def visible(text: str) -> str:
    """Return *text* without what nobody sees."""
    return "".join(filter(str.isprintable, UNSEEN.sub("", text)))


def alike(name: str) -> str:
    """Return what is equal for two names that look the same to most.

    Letters of another alphabet that look the same are not known here: a chat among strangers needs more than names.
    """
    return " ".join(unicodedata.normalize("NFKC", visible(name)).casefold().split())


def run(host: str = "127.0.0.1", port: int = 0, *, front_end: str = "edge") -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        host: The address to listen on.
        port: 0 is a free one.
        front_end: ``"edge"``, ``"mongrel2"``, or ``"auto"``.

    Raises: What :meth:`greentx.edge.Mongrel2.start` raises.
    """
    # With flow control a browser that does not read slows its own greenlet, and is never disconnected for it.
    settings = {"download.flow_control": 1}
    server = make_front_end(front_end, {"/": Handler("chat")}, bind_addr=host, port=port, settings=settings)
    # Should it end by itself, the keeper starts it again, and the pages connect once more.
    with server, Keeper(server):
        handler = server.handlers[0]
        assert handler.recv_spec is not None  # the server made one up
        with Transceiver(
            handler.sender,
            handler.send_spec,
            handler.recv_spec,
            rep_port=False,
            # Our own page, and clients that are no browsers; else any page of the web could talk here.
            origins=["same", None],
        ) as trans:
            # Both signals end serve(): WebSockets are closed politely, then the front end is stopped.
            for number in (signal.SIGINT, signal.SIGTERM):
                gevent.signal_handler(number, trans.stop)
            for line in _lines(server):
                print(line, flush=True)  # noqa: T201 - what the user is told
            chat = Chat(trans)
            trans.serve(chat.answer, websocket=chat.talk)


def _lines(server: FrontEndProcess) -> list[str]:
    kind = "mongrel2" if isinstance(server, Mongrel2) else "embedded front end"
    return [
        f"{server.url} ({kind})",
        "  Open it in two windows, and talk. Reload one: what was said is still there.",
        f"  kill -9 {server.pid}   ends its front end: it is started again, and the pages come back.",
        "  make demo PORT=8000, or greentx demo --port 8000, has a port of your choice. Ctrl-C ends both.",
    ]
