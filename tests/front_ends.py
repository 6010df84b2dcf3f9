"""The servers that speak Mongrel2's protocol to handlers: what holds of the one has to hold of the other.

A test that asks for the fixture ``front_end`` or ``start_front_end`` runs once with each; on a machine without mongrel2
the half with the embedded one is what runs. Where they differ on purpose, a test says both truths, and
``docs/edge-differences.rst`` says why.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from greentx.edge import Handler

__all__ = ["FRONT_ENDS", "ONE_FRONT_END", "ONLY_MONGREL2", "Differs", "FrontEnd", "StartFrontEnd", "started"]

#: What tests are parametrized by.
FRONT_ENDS = (pytest.param("mongrel2", marks=pytest.mark.mongrel2), pytest.param("edge"))

#: For a test of what only Mongrel2 has.
ONLY_MONGREL2 = pytest.mark.parametrize("front_end", FRONT_ENDS[:1], indirect=True)

#: For a slow test of what a front end has little part in: the real one, or the embedded one where there is no other.
ONE_FRONT_END = pytest.mark.parametrize(
    "front_end", FRONT_ENDS[:1] if shutil.which("mongrel2") else FRONT_ENDS[1:], indirect=True
)

StartFrontEnd = Callable[..., Any]


@dataclass(frozen=True)
class Differs:
    """What holds of each of them, where that is not the same.

    Args:
        why: The row of ``docs/edge-differences.rst`` that says why.
    """

    why: str
    mongrel2: Any
    edge: Any


class FrontEnd:
    """One of the two.

    Attributes:
        name: ``"mongrel2"`` or ``"edge"``.
        is_edge: Whether it is the embedded one.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_edge = name == "edge"

    def __repr__(self) -> str:
        return self.name

    def truth(self, value: Any) -> Any:
        """Return what holds of this one: *value*, or its half of a :class:`Differs`."""
        if not isinstance(value, Differs):
            return value
        return value.edge if self.is_edge else value.mongrel2

    def make(self, routes: Mapping[str, Handler] | None = None, *, process: bool = True, **options: Any) -> Any:
        """Return a server that is not started; all other arguments are those of :class:`~greentx.edge.Mongrel2`.

        Args:
            process: False has the embedded one run in this process, where it starts in no time: for a server that a
                test has for itself, and does not restart, stop, or keep from running.
        """
        # Not at the top: what cannot be imported there would fail the tests that do without it, too.
        from greentx import edge

        if not self.is_edge:
            return edge.Mongrel2(routes, **options)
        # So long the notice is late that a client has gone which waits for an answer; a second adds up here.
        options = {"half_close_timeout": 0.2, **options}
        return edge.EdgeProcess(routes, **options) if process else edge.Edge(routes, **options)

    @contextlib.contextmanager
    def started(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Start what :meth:`make` returns; a regular stop lasts half a second, so it is killed."""
        with started(self.make(*args, **options)) as server:
            yield server


@contextlib.contextmanager
def started(server: Any) -> Iterator[Any]:
    """Start it, and end it at once behind the block."""
    server.start()
    try:
        yield server
    finally:
        server.stop(0)
