"""One life of a server: from its subscription to its end.

Connection ids mean something in one life only: a restarted Mongrel2 begins at 1 again (probed). So whatever is kept by
id is kept here and goes with it, and each request knows the life that it came in (``request.life``): where that is
over, an answer would reach a stranger.
"""

from __future__ import annotations

from collections.abc import Callable

from ..protocol.bounds import Queued
from ..protocol.life import Life
from ..protocol.pipeline import OpenRequests
from ..protocol.request import Request
from .uploads import Uploads

__all__ = ["ServerLife"]


class ServerLife(Life):
    """What is known of a server's connections.

    Args:
        forwarded: As for :class:`greentx.protocol.life.Life`.
        upload_store: As for :class:`greentx.handler.uploads.Uploads`.
        queued: As for :class:`greentx.protocol.pipeline.OpenRequests`.
        shared: As for :class:`greentx.handler.uploads.Uploads`.

    Attributes:
        requests: HTTP requests without a complete answer.
        sockets: Connections that the application writes to without an open request: JSON and XML sockets, streams.
        uploads: Bodies that the server is storing.
        word: What a relay calls this life, where one has asked; ``""`` before.
    """

    __slots__ = ("_probed", "requests", "sockets", "uploads", "word")

    def __init__(
        self,
        forwarded: Callable[[Request], None] | None = None,
        upload_store: str | None = None,
        queued: Queued | None = None,
        *,
        shared: bool = False,
    ) -> None:
        super().__init__(forwarded)
        self.requests = OpenRequests(self, queued)
        self.sockets: dict[str, None] = {}
        self.uploads = Uploads(upload_store, shared=shared)
        # Kept here and not by the relay, so that it goes with the life, and with a connection set that is removed.
        self.word = ""
        self._probed: dict[str, Request | None] = {}

    def waiting_since_last_look(self, also: list[str]) -> tuple[list[str], list[str]]:
        """Return the connections that wait for the same thing as at the last call, so that they may be dead.

        Args:
            also: More that wait for something; for what is not known.

        Returns:
            Those that wait for us; those whose browsers are waited for, in the middle of a body.
        """
        # Compared by what they wait with, not by id alone: one that got its answer, and asked again, is alive.
        waiting: dict[str, Request | None] = dict(self.requests.heads)
        waiting.update(dict.fromkeys(self.sockets))
        waiting.update(dict.fromkeys(also))
        waiting.update((conn_id, request) for conn_id, (request, _) in self.uploads.begun.items())
        # Its own marker for "not there": None is what sockets wait with.
        before = self._probed
        self._probed = waiting
        same = {conn_id: what for conn_id, what in waiting.items() if before.get(conn_id, self) is what}
        receiving = [
            conn_id
            for conn_id, what in same.items()
            if conn_id in self.uploads.begun or (what is not None and what.granted > 0)
        ]
        for conn_id in receiving:
            del same[conn_id]
        return list(same), receiving
