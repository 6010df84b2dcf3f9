"""A notebook served by a chain: mongrel2, one API that decides, two Nodes that work, SQLite behind them.

    python examples/chain.py [--port 8000] [--nodes 2] [--database notes.db]

    curl localhost:8000/                                 the API answers this one itself
    curl -H 'X-User: ann' -d 'buy milk' localhost:8000/notes
    curl localhost:8000/notes                            which Node it was, and the notes
    curl -X PUT -d 1 localhost:8000/limit                told to all Nodes: show one note only

The API identifies the user, and forwards what needs the database to a Node, with the header USER, which no client can
forge.
The Node answers mongrel2 directly. Each of the three processes prints the address of its control socket: a test, or
``greentx.Server``, can attach there while mongrel2 is served. Ctrl-C ends all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterator

import gevent
from gevent import subprocess
from gevent.fileobject import FileObject

from greentx import Connection, GreentxError, Request, Transceiver
from greentx.edge import Handler, Keeper, Mongrel2
from greentx.relay import Node, Relay

LOCAL = "127.0.0.1"
MAX_NOTE = 1000
MAX_SHOWN = 1000
HELP = "GET /notes, POST /notes with X-User, PUT /limit\n"


class API:
    """Lets requests in, and hands them on."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    def handle(self, conn: Connection, req: Request) -> None:
        """Answer what needs no database; the rest is for a Node."""
        if req.method == "DISCONNECT":
            return
        if req.path == "/":
            conn.reply_http(req, HELP)
        elif req.path == "/limit" and req.method == "PUT":
            # Here, before all Nodes have it. The length first: Python refuses to read thousands of digits.
            if req.body.isdigit() and len(req.body) < 10 and int(req.body) <= MAX_SHOWN:
                self.relay.publish("limit", req.body)
                conn.reply_http(req, b"", 204)
            else:
                conn.reply_http(req, f"a limit is a whole number from 0 to {MAX_SHOWN}\n", 400)
        elif req.path != "/notes" or req.method not in ("GET", "POST"):
            conn.reply_http(req, HELP, 404)
        else:
            user = req.headers.first("x-user") or ""
            if req.method == "POST" and not user:
                conn.reply_http(req, "the header X-User is missing\n", 401)
            elif len(req.body) > MAX_NOTE:
                conn.reply_http(req, f"a note has at most {MAX_NOTE} bytes\n", 413)
            else:
                self.forward(conn, req, user)

    def forward(self, conn: Connection, req: Request, user: str) -> None:
        """Forward a request; answer 503 where no Node is there in time."""
        try:
            self.relay.forward(req, {"USER": user})
        except TimeoutError:
            conn.reply_http(req, "no Node is connected\n", 503, headers={"Retry-After": "1"})


class Notes:
    """What a Node does: it keeps the notes."""

    def __init__(self, node: Node, database: str) -> None:
        self.node = node
        self.limit = 10
        # Each statement lasts microseconds; a slower database belongs into gevent's thread pool.
        self.database = sqlite3.connect(database, isolation_level=None)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, user TEXT, text TEXT)")

    def handle(self, conn: Connection, req: Request) -> None:
        """Write a note, or show the last ones, as JSON."""
        if req.method == "DISCONNECT":
            return
        if req.method == "POST":
            note = (req.headers["USER"], req.body.decode(errors="replace"))
            self.database.execute("INSERT INTO notes (user, text) VALUES (?, ?)", note)
            conn.reply_http(req, b"", 201)
            return
        rows = self.database.execute("SELECT user, text FROM notes ORDER BY id DESC LIMIT ?", (self.limit,))
        notes = [{"user": user, "text": text} for user, text in rows]
        conn.reply_json(req, {"node": self.node.name, "notes": notes})

    def set_limit(self, topic: str, message: bytes) -> None:
        """The API published how many notes are shown."""
        self.limit = int(message)


def run_node(args: argparse.Namespace) -> None:
    """Be a Node until the process that started us closes our standard input, or is gone."""
    # Ctrl-C reaches every process of the terminal; the first one tells the others when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    node = Node(args.relay, rep_port=0, rep_ip=LOCAL, name=args.name)
    notes = Notes(node, args.database)
    node.subscribe("limit", notes.set_limit)
    with node, contextlib.closing(notes.database):
        print(node.rep_port, flush=True)
        serving = gevent.spawn(node.serve, notes.handle)
        FileObject(sys.stdin.fileno(), "rb", close=False).read()
        node.stop(timeout=5)
        serving.get()


@contextlib.contextmanager
def node_process(name: str, relay: Relay, database: str) -> Iterator[int]:
    """Start a Node in a process of its own and yield the port of its control socket."""
    options = {
        "--name": name,
        "--relay": relay.node_endpoint,
        "--database": database,
    }
    command = [sys.executable, __file__, "node", *(word for option in options.items() for word in option)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        line = child.stdout.readline()
        if not line:
            raise GreentxError(f"{name} did not start")
        yield int(line)
    finally:
        child.stdin.close()
        try:
            child.wait(timeout=7)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def run_chain(args: argparse.Namespace) -> None:
    """Start all, serve until Ctrl-C or SIGTERM, end all."""
    with contextlib.ExitStack() as stack:
        database = args.database or os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "notes.db")
        mongrel2 = stack.enter_context(Mongrel2({"/": Handler("chain")}, bind_addr=args.host, port=args.port))
        stack.enter_context(Keeper(mongrel2))  # should it end by itself, it is started again
        handler = mongrel2.handlers[0]
        assert handler.recv_spec is not None  # mongrel2 made one up
        trans = stack.enter_context(
            Transceiver(handler.sender, handler.send_spec, handler.recv_spec, rep_port=0, rep_ip=LOCAL)
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, trans.stop, 5)
        relay = Relay(trans, pub_addr=(LOCAL, 0), send_timeout=5)
        names = [f"node-{number}" for number in range(1, args.nodes + 1)]
        ports = {name: stack.enter_context(node_process(name, relay, database)) for name in names}
        print(mongrel2.url)
        for name, port in {"api": trans.rep_port, **ports}.items():
            print(f"{name} {LOCAL}:{port}", flush=True)
        trans.serve(API(relay).handle)


def main() -> None:
    """Read the command line; ``node`` is for ourselves."""
    parser = argparse.ArgumentParser(description="A notebook: mongrel2, one API, some Nodes, SQLite.")
    if sys.argv[1:2] == ["node"]:
        for option in ("name", "relay", "database"):
            parser.add_argument(f"--{option}", required=True)
        run_node(parser.parse_args(sys.argv[2:]))
        return
    parser.add_argument("--host", default=LOCAL, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=os.environ.get("PORT") or 0, help="default: $PORT, else a free one")
    parser.add_argument("--nodes", type=int, default=2, help="how many Nodes (default: %(default)s)")
    parser.add_argument("--database", help="the SQLite file (default: a temporary one)")
    run_chain(parser.parse_args())


if __name__ == "__main__":
    try:
        main()
    except (GreentxError, KeyboardInterrupt) as error:
        sys.exit(f"chain: {error or 'interrupted'}")
