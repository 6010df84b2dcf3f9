"""Which front end a program of ours gets: the real ``mongrel2`` where it is installed, else the embedded one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from ..errors import FrontEndNotFound, LocalProtocolError
from .config import Handler
from .embedded import EdgeProcess, check_installed
from .front_end import FrontEndProcess
from .mongrel2 import Mongrel2

__all__ = ["FRONT_ENDS", "choose", "make_front_end"]

#: What may be asked for; ``"auto"`` is one of the others.
FRONT_ENDS = ("auto", "mongrel2", "edge")

_KINDS: dict[str, type[FrontEndProcess]] = {"mongrel2": Mongrel2, "edge": EdgeProcess}


def choose(name: str) -> str:
    """Return ``"mongrel2"`` or ``"edge"`` for a name of :data:`FRONT_ENDS`.

    Raises:
        FrontEndNotFound: ``"auto"``, and there is neither; the message says what to install.
        LocalProtocolError: (a ``ValueError``) it is no such name.
    """
    if name in _KINDS:
        return name
    if name != "auto":
        raise LocalProtocolError(f"front_end {name!r} is unknown: write 'auto', 'mongrel2' or 'edge'")
    if shutil.which("mongrel2") is not None:
        return "mongrel2"
    try:
        check_installed()
    except FrontEndNotFound:
        raise FrontEndNotFound(
            "there is no front end: install the embedded one (pip install greentx[edge]), "
            "or mongrel2 (Debian, Ubuntu: apt-get install mongrel2-core)"
        ) from None
    return "edge"


def make_front_end(name: str, routes: Mapping[str, Handler] | None = None, **options: Any) -> FrontEndProcess:
    """Return one that is not started.

    Args:
        name: Of :data:`FRONT_ENDS`.
        routes: As for a :class:`~greentx.edge.Mongrel2`, and so are the *options*.

    Raises: As :func:`choose`, and what its class raises.
    """
    kind: Any = _KINDS[choose(name)]
    front_end: FrontEndProcess = kind(routes, **options)
    return front_end
