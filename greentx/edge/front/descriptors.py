"""File descriptors: as many as the connections need that a front end may have."""

from __future__ import annotations

import logging
import resource

__all__ = ["make_room"]

log = logging.getLogger("greentx.edge.front")

# ZeroMQ's sockets and threads, listeners, logs, bodies that are being stored.
_OTHERS = 256


def make_room(connections: int) -> None:
    """Let this process have the descriptors that *connections* need, as far as it may; a WARNING says where it may not.

    For processes that are a front end and nothing else: the limit is the whole process's, and its children's.
    """
    needed = connections + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _allows(soft, needed):
        return
    wanted = needed if _allows(hard, needed) else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    except (OSError, ValueError):
        pass  # macOS has a bound of its own, and tells it nobody
    if not _allows(soft, needed):
        log.warning(
            "max_connections is %d, and this process may have %d descriptors: clients beyond them wait; raise the limit"
            " (ulimit -n, LimitNOFILE=%d)",
            connections,
            soft,
            needed,
        )


def _allows(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed
