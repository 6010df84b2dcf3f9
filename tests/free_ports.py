"""A ``greentx.Server`` for tests, which run beside each other: any free ports where none are named."""

from __future__ import annotations

import greentx


class Server(greentx.Server):
    """As ``greentx.Server``, but for its default ports."""

    PUSH_PORT = 0
    SUB_PORT = 0
