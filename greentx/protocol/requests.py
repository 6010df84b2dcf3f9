"""Requests as a server builds them, for handlers: the layout is in :mod:`greentx.protocol.request`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import LocalProtocolError
from .fields import CONN_ID, CONTROL_ID, check_sender, checked_body, encode_sender, encode_text
from .kinds import Kind

__all__ = ["build_credits_notice", "build_disconnect_notice", "build_request"]


def build_request(
    sender: str,
    conn_id: str | int,
    path: str,
    headers: Mapping[Any, Any],
    body: bytes = b"",
    *,
    protocol: str = "tnetstring",
) -> bytes:
    """Build a request as Mongrel2 does: what a handler receives.

    Args:
        sender: The ``send_ident``, without a space. (Mongrel2 sends what it cannot be answered to, too.)
        conn_id: A decimal number, or ``-1`` for the messages of the control socket.
        path: Without a space.
        headers: Names to ``str``, ``bytes`` or lists of them; of a ``Headers`` map, ``QUERY_STR`` becomes QUERY.
        body: Bytes, sent as they are.
        protocol: ``"tnetstring"`` or ``"json"``, as in the server's configuration.

    Raises:
        LocalProtocolError: A field cannot be written so that the other side reads it back.
    """
    # What cannot be read back is refused here: an old handler dies of it, and a new one could only drop it.
    number = str(conn_id)
    if not CONN_ID.fullmatch(number) and number != CONTROL_ID:
        raise LocalProtocolError(f"conn_id {conn_id!r} is not a decimal number")
    if " " in path or not path:
        raise LocalProtocolError(f"path {path!r} is empty or has a space: percent-encode it")
    if isinstance(headers.get("QUERY"), dict) and "QUERY_STR" not in headers:
        raise LocalProtocolError(
            "header 'QUERY' is a dict: give the query string, as str, or as 'QUERY_STR' next to it"
        )
    raw = {encode_text(name): _encode_value(name, value) for name, value in headers.items()}
    if b"QUERY_STR" in raw:
        query = raw.pop(b"QUERY_STR")
        if query:
            # In the place of the parsed form, since the parser knows Mongrel2's own headers by their order.
            raw[b"QUERY"] = query
        else:
            raw.pop(b"QUERY", None)
    # Both by hand and not by a library, as neither library writes what Mongrel2 writes.
    if protocol == "tnetstring":
        # In the order given, which tnetstring.dumps() reverses: Mongrel2's is told by its own headers in front.
        fields = b"".join(b"%d:%b,%b" % (len(name), name, _tnetstring_value(value)) for name, value in raw.items())
        head = b"%d:%b}" % (len(fields), fields)
    elif protocol == "json":
        # Escape what Mongrel2 escapes and leave all other bytes as they are, as it does.
        fields = b",".join(b"%s:%s" % (_json_string(name), _json_value(value)) for name, value in raw.items())
        head = b"%d:{%s}," % (len(fields) + 2, fields)
    else:
        raise LocalProtocolError(f"protocol is 'tnetstring' or 'json', not {protocol!r}")
    return b"%s %s %s %s%d:%s," % (
        encode_sender(check_sender(sender, mongrel2=False)),
        number.encode(),
        encode_text(path),
        head,
        len(body),
        checked_body(body),
    )


def _encode_value(name: str | bytes, value: object) -> bytes | list[bytes]:
    if isinstance(value, (str, bytes)):
        return encode_text(value)
    if isinstance(value, list):
        return [encode_text(one) for one in value]
    # Lengths and the like; Mongrel2 writes them in decimal.
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, dict) and name in ("QUERY", b"QUERY"):
        # The parsed form of a Headers map; QUERY_STR next to it is what goes out.
        return b""
    raise LocalProtocolError(f"header {name!r} has a {type(value).__name__}; give a str, bytes or a list of them")


def _tnetstring_value(value: bytes | list[bytes]) -> bytes:
    if isinstance(value, list):
        items = b"".join(b"%d:%b," % (len(one), one) for one in value)
        return b"%d:%b]" % (len(items), items)
    return b"%d:%b," % (len(value), value)


def _json_string(text: bytes) -> bytes:
    # Not json.dumps(): Mongrel2 escapes these two and leaves bytes that are not UTF-8 as they came (probed).
    return b'"%s"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def _json_value(value: bytes | list[bytes]) -> bytes:
    if isinstance(value, list):
        return b"[%s]" % b",".join(_json_string(one) for one in value)
    return _json_string(value)


def build_disconnect_notice(sender: str, conn_id: str | int, *, protocol: str = "tnetstring") -> bytes:
    """Build what Mongrel2 sends when a browser has gone; ``METHOD`` is its only header (probed)."""
    return build_request(sender, conn_id, "@*", {"METHOD": Kind.JSON}, b'{"type":"disconnect"}', protocol=protocol)


def build_credits_notice(sender: str, conn_id: str | int, written: int, *, protocol: str = "tnetstring") -> bytes:
    """Build what Mongrel2 sends once it wrote *written* bytes of a message, with ``download.flow_control`` (probed)."""
    headers = {"METHOD": Kind.JSON, "DOWNLOAD_CREDITS": str(written)}
    return build_request(sender, conn_id, "@*", headers, b'{"type":"credits"}', protocol=protocol)
