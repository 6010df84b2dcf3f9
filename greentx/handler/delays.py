"""What is to happen some time later, for any number of connections with one timer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from time import monotonic
from typing import Generic, TypeVar

from gevent.hub import get_hub

from ..protocol.websocket.registry import Sid
from ..transport import Context

__all__ = ["AT_ONCE", "DelayQueue"]

T = TypeVar("T")

#: Items that are handed out in one go, for about a millisecond of work; then the hub gets its turn.
AT_ONCE = 128


class DelayQueue(Generic[T]):
    """Hands out each item a fixed time after it was added.

    All wait equally long, so they become due in the order in which they came, and the first one says whether any is.

    Args:
        context: For the timer.
        delay: Seconds.
        tick: Seconds between two looks, so that an item may be so much late. The timer runs while there are items.
        due: Called in the hub with at most :data:`AT_ONCE` items. Must not block.
    """

    def __init__(self, context: Context, delay: float, tick: float, due: Callable[[list[T]], None]) -> None:
        self._context = context
        self._delay = delay
        self._due = due
        # A dict keeps the order of insertion, and forgets one in the middle at no cost, which a deque or heap does not.
        self._items: dict[Sid, tuple[float, T]] = {}
        # One timer that ticks, not one that is set for the first item: setting costs a call for each item that goes.
        self._timer = context.timer(tick, tick)
        self._running = False
        self._stopped = False

    def add(self, sid: Sid, item: T) -> None:
        """Hand *item* out in *delay* seconds; ignored after :meth:`stop`. One that has the same *sid* is replaced."""
        if self._stopped:
            return
        # Behind all others, also where a dict would keep the old place.
        self._items.pop(sid, None)
        self._items[sid] = (monotonic() + self._delay, item)
        if not self._running:
            self._running = True
            self._timer.again(self._look)

    def discard(self, sid: Sid) -> bool:
        """Forget the item of *sid*; False when there is none."""
        return self._items.pop(sid, None) is not None

    def __contains__(self, sid: Sid) -> bool:
        return sid in self._items

    def __len__(self) -> int:
        return len(self._items)

    def clear(self) -> None:
        """Forget all items."""
        self._items.clear()

    def stop(self) -> None:
        """Forget all items and let go of the timer."""
        self._stopped = True
        self._running = False
        self._items.clear()
        self._context.unwatch(self._timer)

    def _look(self) -> None:
        now = monotonic()
        items = self._items
        due = []
        for sid, (moment, item) in list(islice(items.items(), AT_ONCE)):
            if moment > now:
                break
            # Gone before it is handed out: what is called may add the same again.
            del items[sid]
            due.append(item)
        if len(due) == AT_ONCE:
            # There may be more. Not in the next tick: a server that has lost a million clients would need hours.
            get_hub().loop.run_callback(self._look_again)
        if due:
            self._due(due)
        # Asked last, as what was called may have added some.
        if not items and self._running:
            self._running = False
            self._timer.stop()

    def _look_again(self) -> None:
        if self._running and self._context.open:
            self._look()

    def __repr__(self) -> str:
        return f"<DelayQueue of {self._delay} s: {len(self._items)} wait>"
