"""Which silent WebSockets are in the middle of sending a long message, as the server's control port tells.

A client that sends a message in many fragments may come to its pong only behind them, and Mongrel2 hands a message over
whole: nothing is heard of it here meanwhile. But the server counts what it has read of each connection, a fragment when
it is whole (probed; so that of a message in one long frame nothing is seen, and it looks like silence).

The server is asked only where somebody is late: half an interval after a ping who has not answered by then, and again
before those would be ended. It answers with all its connections, 100 bytes each, so one answer serves for all batches
of pings that ask at about the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from time import monotonic

from ..errors import GreentxError
from ..protocol.server_control import NetRow
from .life import ServerLife
from .link import Link
from .orphans import ServerControl

__all__ = ["Progress"]

log = logging.getLogger("greentx.session")


class Progress:
    """What one connection set's late WebSockets have sent.

    Args:
        link: To the server.
        control: Its control port.
    """

    def __init__(self, link: Link, control: ServerControl) -> None:
        self._link = link
        self._control = control
        self._life: ServerLife | None = None
        self._read: dict[str, int] = {}
        # The last answer, and when it came.
        self._rows: dict[str, NetRow] = {}
        self._came_at = float("-inf")

    def note(self, conn_ids: Collection[str], max_age: float = 0.0) -> None:
        """These are late: note how much the server has read of each. Blocks until the control port has answered.

        An answer that came less than *max_age* seconds ago will do.
        """
        now = self._ask(conn_ids, max_age)  # first: it makes the dict anew
        self._read.update(now)

    def sending(self, conn_ids: Collection[str], max_age: float = 0.0) -> list[str]:
        """Return those of which the server has read more since they were noted. Blocks as :meth:`note`."""
        now = self._ask(conn_ids, max_age)
        more = [conn_id for conn_id, count in now.items() if count > self._read.get(conn_id, count)]
        self._read.update(now)
        return more

    def _ask(self, conn_ids: Collection[str], max_age: float) -> dict[str, int]:
        life = self._link.life
        if life is not self._life:
            self._life = life
            self._read = {}
            self._came_at = float("-inf")
        if monotonic() - self._came_at >= max_age:
            try:
                rows = self._control.connections()
            except GreentxError as error:
                log.debug("%s: what is read of late WebSockets is not known: %s", self._link.sender, error)
                return {}
            if self._link.life is not life:
                return {}  # the numbers are others' by now
            # Of those that have gone nothing is kept.
            self._read = {conn_id: count for conn_id, count in self._read.items() if conn_id in rows}
            self._rows, self._came_at = rows, monotonic()
        rows = self._rows
        return {conn_id: rows[conn_id].bytes_read for conn_id in conn_ids if conn_id in rows}
