"""WebSockets (RFC 6455, RFC 7692) without I/O."""

from __future__ import annotations

# The two that applications use; the rest is imported from its own module.
from .frames import CloseCode, Opcode

__all__ = ["CloseCode", "Opcode"]
