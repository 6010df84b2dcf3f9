"""Browsers of a cluster: groups of them, in a program on a host of their own, and what became of all that they sent."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hosts import ANSWER_SECONDS, Host, Program, until

sys.path.append(str(Path(__file__).parents[1] / "chaos"))

from harness import Lost, Tally
from speakers import Spoken

#: The port of each Mongrel2.
HTTP_PORT = 18080


class Crowd:
    """So many callers or talkers (``tests/chaos/harness.py``), or speakers, that ask one Mongrel2; they begin at once.

    Args:
        program: The role ``browsers``.
        kind: ``callers``, ``talkers`` or ``speakers``.
        front: The host of the Mongrel2.
        options: Of each of them.
    """

    _count = 0

    def __init__(self, program: Program, kind: str, front: Host, number: int, **options: Any) -> None:
        Crowd._count += 1
        self.kind = kind
        self.number = number
        self.name = f"{kind} {Crowd._count} at {front.name}"
        self._program = program
        server = [front.address, HTTP_PORT]
        program.ask("start", group=self.name, kind=kind, server=server, number=number, **options)

    def count(self) -> dict[str, Any]:
        """Return what the program tells."""
        return dict(self._program.ask("count", group=self.name))

    def progress(self, more: int, timeout: float = ANSWER_SECONDS) -> None:
        """Wait for so many right answers more."""
        wanted = self.count()["right"] + more
        until(lambda: self.count()["right"] >= wanted, f"{more} right answers of {self.name}", timeout)

    def finish(self) -> Any:
        """Have them end when what they asked is answered, and return the count. Fails where one hangs, or failed."""
        found = self._program.ask("finish", timeout=40, group=self.name)
        assert not found["hanging"] and not found["failed"], f"{self.name}: {found['hanging']} hang, {found['failed']}"
        count = found["count"]
        if self.kind == "speakers":
            return Spoken(**{**count, "ended": _counter(count["ended"]), "refused": Counter(count["refused"])})
        counters = {name: _counter(count[name]) for name in ("refused", "ended")}
        return Tally(**{**count, **counters, "lost": [Lost(**one) for one in count["lost"]], "excuses": []})


def _counter(found: dict[str, int]) -> Counter[int]:
    return Counter({int(key): value for key, value in found.items()})


def all_right(tallies: Sequence[Tally]) -> None:
    """Fail unless everything that was sent was answered right, and no WebSocket was ended."""
    for tally in tallies:
        accounted(tally)
        assert tally.right == tally.sent, f"{tally}: {tally.lost[:3]}"
        assert not tally.ended, f"WebSockets were ended: {tally.ended}"


def accounted(tally: Tally, *, refused: Sequence[int] = (), ended: Sequence[int] = ()) -> None:
    """Fail where one got what was another's, or damaged, where something is missing in the count, or all of it is.

    Args:
        refused: Statuses that may have come instead of an answer.
        ended: Codes with which WebSockets may have been ended.
    """
    assert not tally.strangers, tally.strangers[0]
    assert not tally.wrong, tally.wrong[0]
    assert tally.right, "nothing was answered"
    assert set(tally.refused) <= set(refused), f"refused with {tally.refused}"
    assert set(tally.ended) <= set(ended), f"WebSockets ended with {tally.ended}"
    assert tally.right + len(tally.lost) + sum(tally.refused.values()) == tally.sent, f"not accounted for: {tally}"


def heard_out(spoken: Spoken, *, doubled: int = 0, ended: Sequence[int] = (), lost: bool = False) -> None:
    """Fail where a speaker heard what it did not say, or out of order, or not at all.

    Args:
        doubled: So many echoes may have come twice.
        ended: Codes with which WebSockets may have been ended.
        lost: What was said on a WebSocket that was ended may have no echo.
    """
    assert not spoken.strangers, spoken.strangers[0]
    assert not spoken.disordered, spoken.disordered[0]
    assert spoken.right, "nothing was heard"
    assert spoken.doubled <= doubled, f"{spoken.doubled} echoes came twice"
    assert set(spoken.ended) <= set(ended), f"WebSockets ended with {spoken.ended}"
    assert lost or not spoken.lost, f"{len(spoken.lost)} of {spoken.sent} have no echo: {spoken.lost[:3]}"
    assert spoken.right + len(spoken.lost) == spoken.sent, f"not accounted for: {spoken}"
