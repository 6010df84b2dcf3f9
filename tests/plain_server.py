"""What stands where Mongrel2 would: plain PUSH and SUB sockets, both bound. Unlike Mongrel2 it does as it is told."""

from __future__ import annotations

from types import TracebackType

import gevent
import zmq
import zmq.green

NOTICE = b'%b %b @* 17:{"METHOD":"JSON"},21:{"type":"disconnect"},'


class PlainServer:
    """Pushes what it is told to and collects what it receives.

    Args:
        ident: What it subscribes to.
        receipts: Whether it gives notice of connections with numbers that no browser has.
        reads: False leaves what comes to the kernel and ZeroMQ, which soon have enough.
        sender: Begins its notices.
        endpoints: Where to bind PUSH and SUB, as another one before it.
    """

    def __init__(
        self,
        ident: bytes = b"",
        *,
        receipts: bool = True,
        reads: bool = True,
        sender: bytes = b"plain",
        endpoints: tuple[str, str] = ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
    ) -> None:
        self.replies: list[bytes] = []
        self.asked = 0
        self.receipts = receipts
        self.sender = sender
        self.context = zmq.green.Context()
        self.push = self.context.socket(zmq.PUSH)
        self.sub = self.context.socket(zmq.SUB)
        if not reads:
            self.sub.setsockopt(zmq.RCVHWM, 1)
            self.sub.setsockopt(zmq.RCVBUF, 4096)
        self.sub.setsockopt(zmq.SUBSCRIBE, ident)
        for socket, endpoint in zip((self.push, self.sub), endpoints, strict=True):
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(endpoint)
        self.push_endpoint = self.push.last_endpoint.decode()
        self.sub_endpoint = self.sub.last_endpoint.decode()
        self.greenlets: list[gevent.Greenlet] = []
        if reads:
            self.read()

    def read(self) -> None:
        """Begin to read, where that was not done from the start."""
        self.greenlets.append(gevent.spawn(self._read))

    def _read(self) -> None:
        while True:
            message = self.sub.recv()
            conn_ids = message.split(b":", 1)[1].split(b",", 1)[0]
            if len(conn_ids) == 10 and message.endswith(b", "):
                self.asked += 1
                if self.receipts:
                    self.push.send(NOTICE % (self.sender, conn_ids))
            else:
                self.replies.append(message)

    def bodies(self, conn_id: bytes = b"1") -> bytes:
        """What one connection got."""
        got = b""
        for message in self.replies:
            ids, _, body = message.split(b":", 1)[1].partition(b", ")
            if conn_id in ids.split():
                got += body
        return got

    def close(self) -> None:
        """Close all; what was pushed and not pulled is gone."""
        gevent.killall(self.greenlets)
        self.context.destroy(0)

    def __enter__(self) -> PlainServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def until(condition, seconds: float = 10.0) -> None:
    """Let greenlets run until *condition* holds."""
    with gevent.Timeout(seconds, AssertionError(f"it did not happen within {seconds} s")):
        while not condition():
            gevent.sleep(0.002)
