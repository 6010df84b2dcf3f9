"""What processes share by an engine that is there already: :mod:`greentx.backends.redis`. Each is an extra."""

from __future__ import annotations

__all__ = ()
