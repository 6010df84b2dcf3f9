"""What a Node has sent to one browser, and the relay has not said to have left."""

from __future__ import annotations

from typing import Final

from gevent.event import Event

from ..errors import SendTimeout
from ..handler.shared import Shared

__all__ = ["SENT_BYTES", "SendWindow"]

#: What a message counts next to its payload; as at the API.
SENT_BYTES: Final = 128

# Above this send() waits, as where the browser's own connection is full.
_WINDOW = 256 * 1024


class SendWindow:
    """The bytes on their way to one browser.

    Args:
        shared: The Node's.
        conn_id, endpoint: The browser's, and the relay's; for errors.

    Attributes:
        closed: Nothing of it is of interest any more.
    """

    __slots__ = ("_bytes", "_conn_id", "_endpoint", "_room", "_shared", "closed")

    def __init__(self, shared: Shared, conn_id: str, endpoint: str) -> None:
        self.closed = False
        self._shared = shared
        self._conn_id = conn_id
        self._endpoint = endpoint
        self._bytes = 0
        # Only while somebody waits.
        self._room: Event | None = None

    def sent(self, size: int) -> str:
        """A message of so many bytes was sent. Blocks this greenlet while there is no room.

        Returns:
            ``""``; or why the browser is to be ended: this greenlet must not wait, and too much waits for it.

        Raises:
            SendTimeout: Nothing left for ``send_timeout`` seconds.
        """
        self._bytes += size + SENT_BYTES
        if self._bytes <= _WINDOW:
            return ""
        waits = self._shared.for_browser()
        if waits is None or self._shared.context.hub is self._shared.context.caller():
            # As where a browser of this process does not read, and nobody may wait for it.
            bound = self._shared.bounds.max_outbox
            return f"more than {bound} bytes wait for it (max_outbox)" if self._bytes > bound else ""
        with waits:
            self._wait()
        return ""

    def _wait(self) -> None:
        seconds = self._shared.send_timeout
        while self._bytes > _WINDOW and not self.closed:
            before = self._bytes
            if self._room is None:
                self._room = Event()
            if not self._room.wait(seconds) and self._bytes >= before and self._bytes > _WINDOW:
                raise SendTimeout(
                    f"connection {self._conn_id} read nothing for {seconds} s, {self._bytes} bytes wait for it",
                    address=self._endpoint,
                    queued=True,
                )

    def left(self, size: int) -> None:
        """So many bytes have gone to the browser."""
        self._bytes = max(0, self._bytes - size)
        # Any progress gives those that wait more time.
        self._wake()

    def close(self) -> None:
        """Let those go on that wait."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.set()
