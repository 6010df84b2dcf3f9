"""A chat in one page: greentx behind a mongrel2 that it starts itself.

    python examples/chat.py [--port 8000] [--host 0.0.0.0]

What is said are JSON objects with a ``type``. From a page, with a ``value``: ``name`` (the first one joins), ``say``.
To a page, with ``who`` it was: ``join``, ``leave``, ``rename`` (each also with ``people``), ``say``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import gevent

from greentx import GreentxError, Transceiver
from greentx.edge import Handler, Mongrel2

PAGE = (Path(__file__).parent / "chat.html").read_bytes()
HTML = {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-cache"}
MAX_NAME = 24
MAX_TEXT = 1000


class Chat:
    """Who is here, and what happens on the page and on its WebSocket."""

    def __init__(self, trans: Transceiver) -> None:
        self.trans = trans
        self.people = {}

    def answer(self, conn, req):
        """Serve the page at ``/``."""
        if req.path == "/":
            conn.reply_http(req, PAGE, headers=HTML)
        else:
            conn.reply_http(req, "There is only a page at /.\n", 404, "Not Found")

    def talk(self, ws):
        """Carry what one person says to all, and tell all when that person comes and goes."""
        try:
            for message in ws:
                if not self.hear(ws, message):
                    ws.close(1008, "that is not what the page sends")
        finally:
            name = self.people.pop(ws, None)
            if name is not None:
                self.tell("leave", name, people=self.names())

    def hear(self, ws, message) -> bool:
        """Act on one message; return whether it made sense."""
        try:
            said = json.loads(message)
            kind, value = said["type"], " ".join(said["value"].split())
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        old = self.people.get(ws)
        if kind == "name":
            name = self.people[ws] = value[:MAX_NAME] or "somebody"
            if old is None:
                ws.join("chat")
                self.tell("join", name, people=self.names())
            elif name != old:
                self.tell("rename", old, to=name, people=self.names())
            return True
        if kind == "say" and old is not None:
            if value:
                self.tell("say", old, text=value[:MAX_TEXT])
            return True
        return False

    def tell(self, kind, who, **more):
        """Send one event to everybody who has joined."""
        self.trans.broadcast(json.dumps({"type": kind, "who": who, **more}), group="chat")

    def names(self):
        """Return the names of those who are here, in order."""
        return sorted(self.people.values(), key=str.casefold)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="A chat over WebSockets, behind a mongrel2 of its own.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=os.environ.get("PORT") or 0, help="default: $PORT, else a free one")
    args = parser.parse_args()
    handler = Handler("chat")
    # With flow control a browser that does not read slows its own greenlet, and is never disconnected for it.
    settings = {"download.flow_control": 1}
    with Mongrel2({"/": handler}, bind_addr=args.host, port=args.port, settings=settings) as server:
        handler = server.handlers[0]
        with Transceiver(handler.sender, handler.send_spec, handler.recv_spec, rep_port=False) as trans:
            # Both signals end serve(): WebSockets are closed politely, then Mongrel2 is stopped.
            for number in (signal.SIGINT, signal.SIGTERM):
                gevent.signal_handler(number, trans.stop)
            print(server.url, flush=True)
            chat = Chat(trans)
            trans.serve(chat.answer, websocket=chat.talk)


if __name__ == "__main__":
    try:
        main()
    except (GreentxError, KeyboardInterrupt) as error:
        sys.exit(f"chat: {error or 'interrupted'}")
