"""The masking of WebSocket frames that a client sends: each byte XOR one of the four bytes of the key, in turn.

In C where the package ``websockets`` is installed (extra ``speed``). Without it, the standard library does the work in
one of two ways: a short payload as one big integer; a longer one as four strides, each through a table of 256 bytes
(``bytes.translate``). Microseconds, of one run on Python 3.11:

======== === ==== =====
bytes    20  1000 65536
======== === ==== =====
integer  0.3 2.4  113
tables       2.1  71
in C     0.1 0.2  1.6
======== === ==== =====

Source: RFC 6455, section 5.3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

__all__ = ["apply_mask", "apply_mask_in_python", "compiled_mask"]

# From here on four tables are faster than one integer.
_SHORT = 768
_EVERY_BYTE = bytes(range(256))
_NO_CHANGE = bytes(4)
_from_bytes = int.from_bytes


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """XOR *payload* with the four bytes of *mask*, over and over; a second time undoes it.

    Args:
        payload: ``bytes``; of another kind the two ways may make different things.
        mask: ``bytes``, four of them. With zeros *payload* itself is returned: no copy, no pass over it.

    Raises:
        ValueError: *mask* is not four bytes long.

    Source: RFC 6455, section 5.3.
    """
    # What greentx.wsgi hands to a WebSocket library is masked with zeros.
    if mask == _NO_CHANGE:
        return payload
    return compiled_mask()(payload, mask)


@cache
def compiled_mask() -> Callable[[bytes, bytes], bytes]:
    """Return the function in C, or :func:`apply_mask_in_python` where it is not installed."""
    # Not at import: a handler behind Mongrel2 never masks, and `websockets` brings some 100 modules along.
    try:
        from websockets.speedups import apply_mask as compiled
    except ImportError:
        return apply_mask_in_python
    return compiled


def apply_mask_in_python(payload: bytes, mask: bytes) -> bytes:
    """Do as :func:`apply_mask`, with nothing but the standard library."""
    if len(mask) != 4:
        raise ValueError("mask must contain 4 bytes")
    length = len(payload)
    if length < _SHORT:
        key = (mask * (length // 4 + 1))[:length]
        return (_from_bytes(payload, "little") ^ _from_bytes(key, "little")).to_bytes(length, "little")
    result = bytearray(payload)
    for place, key_byte in enumerate(mask):
        result[place::4] = result[place::4].translate(_table(key_byte))
    return bytes(result)


@cache
def _table(key_byte: int) -> bytes:
    """Return the 256 bytes XOR *key_byte*; all of the tables together are 64 KiB."""
    return bytes([byte ^ key_byte for byte in _EVERY_BYTE])
