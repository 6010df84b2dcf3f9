"""Refuses messages of senders that belong to another server; whose they are is in :mod:`greentx.handler.senders`."""

from __future__ import annotations

import logging
from contextlib import suppress

from ..errors import LocalProtocolError
from ..protocol.kinds import FRAMES, SOCKETS
from ..protocol.request import Request
from .answers import Answers
from .link import Link
from .shared import Shared
from .uploads import START

__all__ = ["Foreign"]

log = logging.getLogger("greentx.connection")

# Senders of other servers that a warning was logged of. They come from outside.
_MAX_WARNED_OF = 64


class Foreign:
    """What one connection set refuses.

    Args:
        shared: What all connection sets share.
        link: Where messages come from.
        answers: For the refusals.

    Attributes:
        count: How many messages were refused.
    """

    def __init__(self, shared: Shared, link: Link, answers: Answers) -> None:
        self.count = 0
        self._senders = shared.senders
        self._link = link
        self._answers = answers
        self._warned_of: set[str] = set()

    def admits(self, request: Request) -> bool:
        """See whether the sender of *request*, which is new here, belongs to this server; where not, refuse it.

        Blocks as :meth:`greentx.handler.senders.Senders.admit` does.
        """
        sender = request.sender
        why = self._senders.admit(sender, self._link.pub_endpoint)
        if not why:
            return True
        self.count += 1
        if sender not in self._warned_of:
            # Once, not for each request of each of its browsers.
            if len(self._warned_of) >= _MAX_WARNED_OF:
                self._warned_of.clear()
            self._warned_of.add(sender)
            log.warning(
                "%s: messages from %s come with the sender %r, but %s: they are refused. Give each handler entry a "
                "send_ident of its own",
                self._link.sender,
                self._link.pull_endpoint,
                sender,
                why,
            )
        # A name that no reply can have is not answered: the log says so, and the next message is somebody else's.
        with suppress(LocalProtocolError):
            self._refuse(request)
        return False

    def _refuse(self, request: Request) -> None:
        """Answer by what is kept by connection set, and not by sender; never blocks."""
        conn_id = request.conn_id
        writer = self._link.writer
        if request.is_notice():
            written = request.credits()
            if written is not None:
                writer.credit(conn_id, written)
            elif not writer.receipts.arrived(conn_id):
                writer.forget(conn_id)
                self._link.life.requests.remove(conn_id)
        elif request.method in SOCKETS or request.method in FRAMES:
            writer.close(request.sender, [conn_id], wait=False)
        else:
            if request.has(START):
                self._link.life.uploads.refuse(request)
            self._answers.at_once(request, 503)
