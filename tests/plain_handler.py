"""A handler written with plain sockets, with nothing of greentx's handler side: PUB, PULL, and what looks like REP.

Unlike a Transceiver it misbehaves on demand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from types import TracebackType

import gevent
import zmq.green as zmq

from greentx.protocol.replies import build_control_reply, build_reply
from greentx.protocol.request import Request, parse_request
from greentx.transport.endpoints import endpoint_address

Answer = Callable[[Request], "bytes | Iterable[bytes] | None"]


class PlainHandler:
    """Answers requests with *answer*: the body of one reply, several bodies, or ``None`` for no reply.

    Args:
        answer: Called with each request; an ``echo`` of its body by default.
        mute: Questions of the control socket that are not answered, from the first on.
        refuse: Words to answer every command with, instead of obeying.
        lost_proofs: Proofs that are promised and not sent, from the first on.
        pull: False never connects PULL.
        keep_pull: True keeps it connected when told to let go.
        port: Of the control socket; 0 is any.

    Attributes:
        commands: The paths that were asked for, in order.
        requests: What was pulled.
        pubs: The PUB sockets, by the sender of the server that they are connected to.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        mute: int = 0,
        refuse: bytes = b"",
        lost_proofs: int = 0,
        pull: bool = True,
        keep_pull: bool = False,
        port: int = 0,
    ) -> None:
        self.answer = answer or (lambda request: request.body)
        self.mute = mute
        self.refuse = refuse
        self.lost_proofs = lost_proofs
        self.pull = pull
        self.keep_pull = keep_pull
        self.port = port
        self.commands: list[str] = []
        self.requests: list[Request] = []
        self.pubs: dict[str, zmq.Socket[bytes]] = {}
        self._pullers: dict[str, gevent.Greenlet] = {}

    def __enter__(self) -> PlainHandler:
        self._context = zmq.Context()
        self._rep = self._context.socket(zmq.ROUTER)  # unlike REP, it may leave a question unanswered
        self._rep.bind(f"tcp://127.0.0.1:{self.port or '*'}")
        self.port = endpoint_address(self._rep.last_endpoint)[1]
        self.addr = f"127.0.0.1:{self.port}"
        self._control = gevent.spawn(self._serve_control)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gevent.killall(list(self._pullers.values()))
        self._control.kill()
        self._context.destroy(0)

    def publish(self, sender: str, conn_ids: object, body: bytes) -> None:
        """Send one reply."""
        self.publish_raw(sender, build_reply(sender, conn_ids, body))

    def publish_raw(self, sender: str, message: bytes) -> None:
        """Send any bytes."""
        self.pubs[sender].send(message)

    def _serve_control(self) -> None:
        while True:
            *route, message = self._rep.recv_multipart()
            if self.mute:
                self.mute -= 1
                continue
            self._rep.send_multipart([*route, self._obey(message)])

    def _obey(self, message: bytes) -> bytes:
        if message == b"PING":
            self.commands.append("PING")
            return b"pong"
        if message == b"STATUS":
            return b'{"version": "plain"}' if not self.refuse else self.refuse
        request = parse_request(message)
        self.commands.append(request.path)
        assert request.conn_id == "-1"
        if self.refuse:
            return self.refuse
        if request.path == "/__add_connection__":
            assert request.method == "JSON"
            self._add(request.sender, json.loads(request.body))
        elif request.path == "/__remove_connection__":
            self._remove(request.sender)
        elif request.path == "/__ping__":
            assert request.method == "MONGREL2"
            if self.lost_proofs:
                self.lost_proofs -= 1
            else:
                text = request.headers["QUERY"]["text"].encode()
                self.publish_raw(request.sender, build_control_reply(request.sender, text))
        else:
            assert request.path == "/__disconnect_ping__"
        return b"RECEIVED"

    def _add(self, sender: str, body: dict[str, list[object]]) -> None:
        assert body.keys() == {"push", "sub"}
        pub = self.pubs[sender] = self._context.socket(zmq.XPUB)
        pub.connect("tcp://{}:{}".format(*body["sub"]))
        if self.pull:
            pull = self._context.socket(zmq.PULL)
            pull.connect("tcp://{}:{}".format(*body["push"]))
            self._pullers[sender] = gevent.spawn(self._serve, pull, pub, sender)

    def _remove(self, sender: str) -> None:
        if sender in self._pullers and not self.keep_pull:
            self._pullers.pop(sender).kill()  # first: it may be reading from what is closed then
        pub = self.pubs.pop(sender, None)
        if pub is not None:
            pub.close(0)

    def _serve(self, pull: zmq.Socket[bytes], pub: zmq.Socket[bytes], sender: str) -> None:
        try:
            pub.recv()  # the subscription: what was answered before would be lost
            while True:
                request = parse_request(pull.recv())
                self.requests.append(request)
                bodies = None if request.is_disconnect() else self.answer(request)
                if bodies is None:
                    continue
                for body in [bodies] if isinstance(bodies, bytes) else bodies:
                    self.publish(sender, request.conn_id, body)
        finally:
            pull.close(0)
