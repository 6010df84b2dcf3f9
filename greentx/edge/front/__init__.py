"""The embedded front end: what speaks HTTP to browsers and Mongrel2's protocol to handlers, in this process."""

from __future__ import annotations

# Imported file by file, and by `greentx.edge` only when it is wanted: what it is made of comes with an extra.
__all__ = ()
