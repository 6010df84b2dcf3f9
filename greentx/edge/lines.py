"""What the embedded front end's process writes to whoever started it: each line is a list in JSON.

``["log", 30, "greentx.edge.front", "text"]`` is for a logger, at a level; ``["ready"]`` says that the port accepts and
the endpoints are bound; ``["failed", "text", "address", 98]`` why it could not start, the address and the number of the
error being ``null`` where none is to blame. What is no such list was written by something else, such as a library.
"""

from __future__ import annotations

import json

__all__ = ["LOGGER", "Line", "failed", "log", "parse", "ready"]

#: The logger that its loggers are below.
LOGGER = "greentx.edge.front"

Line = tuple[str | int | None, ...]

# What follows each word.
_TYPES: dict[str, tuple[tuple[type, ...], ...]] = {
    "log": ((int,), (str,), (str,)),
    "ready": (),
    "failed": ((str,), (str, type(None)), (int, type(None))),
}


def log(level: int, name: str, text: str) -> str:
    """Return the line of a message to log."""
    return json.dumps(["log", level, name, text])


def ready() -> str:
    """Return the line that says that it serves."""
    return json.dumps(["ready"])


def failed(text: str, address: str | None, errno: int | None) -> str:
    """Return the line that says why it does not."""
    return json.dumps(["failed", text, address, errno])


def parse(line: str) -> Line | None:
    """Return the parts of a line; ``None`` for one that is not of these."""
    if not line.startswith("["):
        return None
    try:
        parts = json.loads(line)
    except ValueError:
        return None
    types = _TYPES.get(parts[0]) if parts and isinstance(parts[0], str) else None
    if types is None or len(parts) != 1 + len(types):
        return None
    if not all(isinstance(part, allowed) for part, allowed in zip(parts[1:], types, strict=True)):
        return None
    return tuple(parts)
