"""What can be decided from bytes and facts alone: no I/O, no clock, no greenlets. Bytes and facts in, the same out."""

from __future__ import annotations

from .replies import Response
from .request import Request

__all__ = ["Request", "Response"]
