"""The chat that ``greentx demo`` runs, as an example of a program: imported by that command only."""

from __future__ import annotations

__all__ = ()
