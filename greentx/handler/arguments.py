"""What an application hands in to be sent, checked before anything of it is, and as bytes. No I/O.

What Mongrel2 would not accept raises here, in the caller: an invalid reply would stall its replies to all (probed).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ..errors import LocalProtocolError, RemoteProtocolError
from ..protocol.http1 import HeaderFields, connection_options
from ..protocol.replies import parse_extended_body

__all__ = ["as_bytes", "as_json", "asks_to_close", "checked_ids", "extended_body"]


def checked_ids(idents: str | int | Iterable[str | int]) -> list[str]:
    """Return the ids of connections as texts. Raises ``LocalProtocolError`` where one is not a decimal number."""
    if isinstance(idents, (str, int)):
        idents = (idents,)
    conn_ids = [ident if isinstance(ident, str) else str(ident) for ident in idents]
    for conn_id in conn_ids:
        # isdecimal() alone would accept other scripts' digits.
        if not (conn_id.isascii() and conn_id.isdecimal()):
            raise LocalProtocolError(f"conn_id {conn_id!r} is not a decimal number")
    return conn_ids


def as_bytes(data: object) -> bytes:
    """Return what is to be sent; str as UTF-8. Raises ``LocalProtocolError`` for anything else than text or bytes."""
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise LocalProtocolError(f"text that cannot be written as UTF-8 cannot be sent: {error}") from error
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise LocalProtocolError(f"what is sent is str or bytes, not {type(data).__name__}")


def extended_body(data: bytes) -> tuple[bytes, object]:
    """Return the key and the value of an extended reply.

    Raises:
        LocalProtocolError: *data* is not the body of one, or of one that would end the connection.
    """
    try:
        key, value = parse_extended_body(data)
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from error
    # Unknown keys are for loaded modules, which are the server's business; this one kills the connection (probed).
    if key == b"ctl" and not isinstance(value, dict):
        raise LocalProtocolError(f"the value of 'ctl' is a dict, not {value!r}: Mongrel2 ends the connection otherwise")
    return key, value


def as_json(data: object) -> bytes:
    """Return *data* as JSON. Raises ``LocalProtocolError`` where it cannot be written so."""
    try:
        return json.dumps(data).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise LocalProtocolError(f"{type(data).__name__} cannot be written as JSON: {error}") from error


def asks_to_close(headers: HeaderFields) -> bool:
    """Whether a response says that the connection ends behind it."""
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        # Nearly always spelled so; the length spares the others a copy in lower case.
        if name in ("Connection", b"Connection") or (len(name) == 10 and name.lower() in ("connection", b"connection")):
            values = value if isinstance(value, (list, tuple)) else [value]
            texts = [one.decode("latin-1") if isinstance(one, bytes) else str(one) for one in values]
            return "close" in connection_options(texts)
    return False
