"""The front end that a program brings along: a real ``mongrel2`` as a child of ours."""

from __future__ import annotations

from .config import Handler
from .mongrel2 import Mongrel2

__all__ = ["Handler", "Mongrel2"]
