"""The front end that a program brings along: a real ``mongrel2`` as a child of ours, or the embedded one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# The files build on each other: config, folder, process, output, addresses, front_end, a server, and what keeps it.
from .config import Handler
from .embedded import EdgeProcess
from .keeper import Keeper
from .mongrel2 import Mongrel2

if TYPE_CHECKING:
    from .front.front import Edge

__all__ = ["Edge", "EdgeProcess", "Handler", "Keeper", "Mongrel2"]


def __getattr__(name: str) -> Any:
    # Not imported before it is wanted: what it is made of comes with an extra.
    if name != "Edge":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(".front.front", __name__).Edge
    except ModuleNotFoundError as error:
        if error.name != "httptools":
            raise
        raise ImportError(
            "the embedded front end needs httptools: pip install greentx[edge]", name=error.name
        ) from None
