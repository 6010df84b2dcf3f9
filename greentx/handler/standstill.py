"""What tells that a server that is there stands still: it was stopped, or cannot be reached."""

from __future__ import annotations

from time import monotonic

from ..transport.waiting import STANDSTILL_SECONDS
from .link import Link

__all__ = ["standstill"]


def standstill(link: Link) -> str:
    """Return what says that the server of *link* stands still; ``""`` where nothing does.

    A pipe to it that is full and accepts nothing, or a receipt that does not come, for so long that others would not
    wait for it. Where nothing is sent nothing tells.
    """
    writer = link.writer
    full = monotonic() - writer.pipe.line.moved_at if writer.pipe_full else 0.0
    seconds = max(full, writer.receipts.late) if link.subscribed else 0.0
    if seconds < STANDSTILL_SECONDS:
        return ""
    return f"the Mongrel2 at {link.pub_endpoint} has received nothing for {seconds:.1f} s: is it stopped?"
