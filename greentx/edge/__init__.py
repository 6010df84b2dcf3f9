"""The front end that a program brings along: a real ``mongrel2`` as a child of ours."""

from __future__ import annotations

# The files build on each other: config, folder, process, output, addresses, the server itself, and what keeps it.
from .config import Handler
from .keeper import Keeper
from .mongrel2 import Mongrel2

__all__ = ["Handler", "Keeper", "Mongrel2"]
