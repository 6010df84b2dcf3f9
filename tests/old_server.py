"""mongrel2-transceiver's Server, Connector and Client, as far as a handler sees them: bytes on plain sockets."""

from __future__ import annotations

import json
import uuid
from types import TracebackType

import gevent
import tnetstring
import zmq.green as zmq


class OldServer:
    """PUSH and SUB, bound, and a REQ to the control socket of one handler. Everything is sent and read in its turn.

    Args:
        control: The port of the handler's control socket, on 127.0.0.1.
        sender: What requests begin with.
        encoding: Of the headers: ``json`` or ``tnetstring``.
    """

    def __init__(self, control: int, sender: str = "python_server", encoding: str = "json") -> None:
        self.sender = sender.encode()
        self.encoding = encoding
        self.context = zmq.Context()
        self.push, self.sub, self.req = (self.context.socket(kind) for kind in (zmq.PUSH, zmq.SUB, zmq.REQ))
        self.ports = [one.bind_to_random_port("tcp://127.0.0.1") for one in (self.push, self.sub)]
        self.sub.subscribe(b"")
        self.req.connect(f"tcp://127.0.0.1:{control}")

    def __enter__(self) -> OldServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.context.destroy(0)

    # -- the control socket ------------------------------------------------------------------------------------------

    def ask(self, message: bytes) -> bytes:
        """Ask the handler's control socket, and return its answer."""
        self.req.send(message)
        with gevent.Timeout(5):
            return self.req.recv()

    def command(self, path: str, method: str, body: bytes = b"", **headers: str) -> bytes:
        """Ask with a request message of the connection that no browser has."""
        return self.ask(self.message("-1", path, {"METHOD": method, **headers}, body))

    def add(self, **more: object) -> bytes:
        """Have the handler connect; *more* goes into the body."""
        push, sub = (["127.0.0.1", port] for port in self.ports)
        return self.command("/__add_connection__", "JSON", json.dumps({"push": push, "sub": sub, **more}).encode())

    def ask_for_proof(self) -> bytes:
        """Have a guid sent back; return the message that has to come over SUB."""
        guid = str(uuid.uuid4())
        assert self.command("/__ping__", "MONGREL2", QUERY=f"text={guid}") == b"RECEIVED"
        return b"%s 2:-1, %s" % (self.sender, guid.encode())

    def verify_connect(self) -> None:
        """The old one's way: the very next message over SUB is the guid's."""
        expected = self.ask_for_proof()
        assert self.hear() == expected

    def remove(self) -> bytes:
        """Have the handler let go."""
        return self.command("/__remove_connection__", "JSON", b"{}")

    def verify_disconnect(self) -> None:
        """The old one's way: the handler answers, and is quiet for 100 ms."""
        assert self.command("/__disconnect_ping__", "MONGREL2") == b"RECEIVED"
        assert self.silent(100)

    # -- requests and answers ----------------------------------------------------------------------------------------

    def message(self, conn_id: str | int, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
        """Write one request message."""
        if self.encoding == "json":
            text = json.dumps(headers, separators=(",", ":")).encode()
            head = b"%d:%s," % (len(text), text)
        else:
            head = tnetstring.dumps({name.encode(): value.encode() for name, value in headers.items()})
        return b"%s %s %s %s%d:%s," % (self.sender, str(conn_id).encode(), path.encode(), head, len(body), body)

    def request(self, conn_id: int, path: str = "/") -> None:
        """Send what a client's ``send`` does."""
        headers = {"PATH": path, "METHOD": "GET", "VERSION": "HTTP/1.1", "URI": path, "PATTERN": "/"}
        self.push.send(self.message(conn_id, path, headers))

    def hear(self, timeout: int = 5000) -> bytes:
        """Return the next message over SUB, whatever it is."""
        assert self.sub.poll(timeout), f"nothing came for {timeout} ms"
        return self.sub.recv()

    def hear_answers(self, conn_id: int, count: int) -> list[bytes]:
        """Return the bodies of the next messages, which all have to be for that client."""
        start = b"%s %d:%d, " % (self.sender, len(str(conn_id)), conn_id)
        messages = [self.hear() for _ in range(count)]
        assert all(message.startswith(start) for message in messages), messages
        return [message.removeprefix(start) for message in messages]

    def silent(self, milliseconds: int) -> bool:
        """True when nothing comes over SUB for so long."""
        return not self.sub.poll(milliseconds)
