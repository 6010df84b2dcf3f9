"""The process of an :class:`~greentx.edge.EdgeProcess`: reads its configuration, serves, and ends when it is told to.

Nothing is monkey-patched here. What it says to whoever started it is in :mod:`greentx.edge.lines`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

import gevent
from gevent.event import Event

from ...errors import GreentxError
from .. import lines
from ..config import Handler
from .collecting import collect_seldom
from .descriptors import make_room
from .front import Edge
from .log_pipe import LogPipe

__all__ = ["main"]

# Between two looks whether our parent is there, where the system does not tell.
_LOOK_SECONDS = 1.0
# For answers that are due; who told us to end tells us again when it has waited long enough.
_END_SECONDS = 60.0


def main(configuration: dict[str, Any]) -> int:
    """Serve until SIGTERM or SIGINT, or until the parent has gone; return the exit code. A second one ends it at once.

    Args:
        configuration: As :class:`~greentx.edge.EdgeProcess` writes it.
    """
    # Told by a write that fails, as our parent may be gone.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    output = LogPipe(sys.stdout.fileno())
    logger = logging.getLogger(lines.LOGGER)
    logger.addHandler(output)
    logger.setLevel(configuration["log_level"])
    logger.propagate = False
    ending, hurry = Event(), Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, lambda: (hurry if ending.is_set() else ending).set())
    if not sys.platform.startswith("linux"):
        # Linux kills us then, see greentx.edge.process.
        gevent.spawn(_watch, configuration["parent"], ending)
    handlers = [Handler(**one) for one in configuration["handlers"]]
    try:
        edge = Edge(
            {path: handlers[number] for path, number in configuration["routes"].items()},
            bind_addr=configuration["bind_addr"],
            port=configuration["port"],
            listeners=configuration["listeners"],
            settings=configuration["settings"],
            **configuration["options"],
        )
        make_room(edge.max_connections)
        edge.start()
    except (GreentxError, OSError) as error:
        output.write(lines.failed(str(error), getattr(error, "address", None), getattr(error, "errno", None)))
        return 1
    collect_seldom()
    output.write(lines.ready())
    ending.wait()
    stopping = gevent.spawn(edge.stop, _END_SECONDS)
    gevent.wait([stopping, hurry], count=1)
    stopping.kill()
    return 0


def _watch(parent: int, ending: Event) -> None:
    while os.getppid() == parent:
        gevent.sleep(_LOOK_SECONDS)
    ending.set()
