"""The lives of servers, as requests know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["ENDED", "Life"]


class Life:
    """One life of a server, as its requests know it; see :mod:`greentx.handler.life`.

    Args:
        forwarded: Called with a request that was handed on to be answered by somebody else.

    Attributes:
        over: It has ended: what its connection ids mean now, if anything, are other connections.
    """

    __slots__ = ("forwarded", "over")

    def __init__(self, forwarded: Callable[[Any], None] | None = None, *, over: bool = False) -> None:
        self.forwarded = forwarded
        self.over = over


#: In the place of their life, requests whose connection has ended have this.
ENDED = Life(over=True)
