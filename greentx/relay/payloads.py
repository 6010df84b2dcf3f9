"""What the bytes behind a message's words are made of, in both halves of the wire: netstrings, and JSON. No I/O."""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import RemoteProtocolError
from ..protocol.fields import shown

__all__ = ["netstring", "parse_json", "split_netstring"]

# Nine digits hold any length, and keep int() from thousands.
_LENGTH = re.compile(rb"([0-9]{1,9}):")


def netstring(data: bytes) -> bytes:
    """Return *data* behind its length, so that something may follow it."""
    return b"%d:%b," % (len(data), data)


def split_netstring(payload: bytes, start: int = 0) -> tuple[bytes, bytes]:
    """Return what is in the netstring that begins at *start*, and what follows it.

    Raises:
        RemoteProtocolError: None begins there.
    """
    found = _LENGTH.match(payload, start)
    end = -1 if found is None else found.end() + int(found[1])
    if found is None or payload[end : end + 1] != b",":
        raise RemoteProtocolError(f"{shown(payload)} does not begin with a netstring")
    return payload[found.end() : end], payload[end + 1 :]


def parse_json(text: bytes) -> Any:
    """Return what *text* means. Raises ``RemoteProtocolError`` where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"{shown(text)} is not JSON: {error}") from error
