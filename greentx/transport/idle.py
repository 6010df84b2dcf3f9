"""After how many seconds the Mongrel2 servers that this process made end a connection that is silent.

Who made a server knows its limits, and who serves it has to keep alive what waits there; what both know is the endpoint
of its SUB. A forked child knows what its parent knew.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakValueDictionary

__all__ = ["IdleLimit", "idle_limit"]


class IdleLimit:
    """The limit of one server, as long as this object lives.

    Args:
        seconds: After which a silent connection is ended; ``None``: never.
    """

    def __init__(self, seconds: int | None) -> None:
        self.seconds = seconds

    def holds_at(self, endpoints: Iterable[str]) -> None:
        """Have it found by these endpoints, as :func:`greentx.transport.endpoints.connect_endpoint` writes them."""
        _limits.update(dict.fromkeys(endpoints, self))


_limits: WeakValueDictionary[str, IdleLimit] = WeakValueDictionary()


def idle_limit(endpoint: str) -> int | None:
    """Return the seconds of the server that subscribes at *endpoint*; ``None`` where nothing is known, or never."""
    limit = _limits.get(endpoint)
    return None if limit is None else limit.seconds
