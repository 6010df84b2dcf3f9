"""Browsers that read too slowly: found by the clock while something waits for them, and ended.

Only with ``download.flow_control``, where the server tells what they read. Browsers are
not blamed for a server that stands still, nor for an application that does not read its notices: before one is ended
the server has to give a receipt, which comes behind all that it had to tell. It is asked for one at each look: where
that is late the server stood still, or we did, and the browsers' time begins again.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from ..protocol.flow import Flow
from .context import Context
from .waiting import Waiting

__all__ = ["Laggards"]

# How often in send_timeout they are looked for, and the seconds in between at the least and at the most.
_LOOKS = 8
_MIN_SECONDS, _MAX_SECONDS = 0.01, 1.0

# A receipt that takes longer than a look is late, but never one that takes less than this: machines are busy.
_LATE_SECONDS = 0.05


class Laggards:
    """Looks for them in one server's flow.

    Args:
        context: Owner of the timer.
        flow: What waits, and what is read.
        waiting: Has the seconds over which it is judged.
        ask: Asks the server for a receipt, unless one is awaited already; must not block.
        is_fair: Returns False while the browsers cannot help it: the pipe is full, or notices are not read.
        on_slow: Called in the hub with the connection of each, and why it is to be ended; must not block.
    """

    def __init__(
        self,
        context: Context,
        flow: Flow,
        waiting: Waiting,
        *,
        ask: Callable[[], None],
        is_fair: Callable[[], bool],
        on_slow: Callable[[str, str], None],
    ) -> None:
        self._context = context
        self._flow = flow
        self._waiting = waiting
        self._ask = ask
        self._is_fair = is_fair
        self._on_slow = on_slow
        # Since when a receipt is awaited, as far as the looks know; None without one.
        self._awaited_since: float | None = None
        # It was asked for when somebody was found slow, so it comes behind what the server had to tell then.
        self._asked = False
        self._late = 0.0
        self._timer: Any = None

    def watch(self) -> None:
        """Something waits for a browser: look whether it reads, as long as something does."""
        seconds = self._waiting.timeout
        if self._timer is None and seconds is not None:
            tick = min(max(seconds / _LOOKS, _MIN_SECONDS), _MAX_SECONDS)
            self._late = max(tick, _LATE_SECONDS)
            self._timer = self._context.timer(tick, tick)
            self._timer.start(self._look)
            self._look()

    def confirmed(self) -> None:
        """The server has given a receipt: whoever is slow now is slow, unless it was late."""
        since, asked = self._awaited_since, self._asked
        self._awaited_since, self._asked = None, False
        if since is not None and monotonic() - since > self._late:
            self._flow.judge_anew()
        elif not asked and self._timer is not None and self._find():
            # Others may have asked for this one, earlier. None is awaited now, so the next one is ours. What is asked
            # may find that the server has gone, which stops this: so the account of it first.
            self._awaited_since, self._asked = monotonic(), True
            self._ask()
        elif asked:
            for conn_id in self._find():
                self._on_slow(conn_id, self._why())

    def stop(self) -> None:
        """Look no more, until :meth:`watch` is called again."""
        timer, self._timer = self._timer, None
        self._awaited_since, self._asked = None, False
        if timer is not None:
            self._context.unwatch(timer)

    def _look(self) -> None:
        if not self._flow.waiting_ids():
            self.stop()
            return
        # It begins the time of those for which something waits only now.
        self._find()
        if self._awaited_since is None and self._is_fair():
            self._awaited_since = monotonic()
            self._ask()

    def _find(self) -> list[str]:
        seconds = self._waiting.timeout
        if seconds is None:
            return []
        if not self._is_fair():
            self._flow.judge_anew()
            return []
        return self._flow.too_slow(monotonic(), seconds)

    def _why(self) -> str:
        rate = self._flow.bounds.min_rate
        return f"it read less than {rate:g} bytes a second (min_rate) for {self._waiting.timeout:g} s (send_timeout)"
