"""The environ of a request (PEP 3333), out of what Mongrel2 sent.

Names that Mongrel2 made up are in upper case and those of the client in lower case, so no client can set ``METHOD`` or
``UPLOAD_STREAM``. Headers with an underscore are left out, since ``X_Real`` and ``X-Real`` would be one key, and those
with which Mongrel2 announces stored bodies, which are not for the application (:mod:`greentx.wsgi.uploads`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from ..wire import Request

__all__ = ["FramingError", "add_request"]

# What Mongrel2's own names become; "" is dropped.
_SERVER_KEYS = {
    "METHOD": "REQUEST_METHOD",
    "QUERY": "QUERY_STRING",
    "REMOTE_ADDR": "REMOTE_ADDR",
    "URI": "RAW_URI",
    "URL_SCHEME": "wsgi.url_scheme",
    "VERSION": "SERVER_PROTOCOL",
}
_CLIENT_KEYS = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}

# Names of clients are theirs to make up: what is remembered of them has a bound.
_MAX_KEYS = 1024
_keys: dict[bytes | str, str] = {}
_hosts: dict[str, tuple[str, str | None]] = {}

_DEFAULT_PORTS = {"http": "80", "https": "443"}


class FramingError(ValueError):
    """Where the body of this request ends is in doubt, so that what follows it is, too: answer 400 and close."""


def add_request(environ: dict[str, Any], request: Request, *, body_apart: bool = False) -> None:
    """Add the keys of one request to *environ*, but those of its body.

    Args:
        environ: What the server was configured with. ``SCRIPT_NAME`` is the path that the application is mounted at; a
            request for another path has it all in ``PATH_INFO``.
        body_apart: Its body does not come with it, but as a stream, or in a file.

    Raises:
        FramingError: ``Transfer-Encoding`` beside ``Content-Length``, an unknown coding, a length that is not the
            body's.
    """
    shared, raw = request._shared, request._raw
    if shared is None:
        _add_headers(environ, raw)
    else:
        fields = shared.environ
        if fields is None:
            fields = {}
            _add_headers(fields, shared.raw)
            shared.environ = fields
        environ.update(fields)
        if shared.raw is not raw:  # those are the client's; in front of them Mongrel2 writes its own
            environ["REQUEST_METHOD"] = request.method
            environ["RAW_URI"] = raw[b"URI"].decode("latin-1")
            environ["REMOTE_ADDR"] = raw[b"REMOTE_ADDR"].decode("latin-1")
            environ["SERVER_PROTOCOL"] = raw[b"VERSION"].decode("latin-1")
            environ["wsgi.url_scheme"] = raw[b"URL_SCHEME"].decode("latin-1")
            if b"QUERY" in raw:
                environ["QUERY_STRING"] = raw[b"QUERY"].decode("latin-1")
    path = request.path
    environ["REQUEST_URI"] = environ.setdefault("RAW_URI", path)
    if "%" in path:
        path = unquote_to_bytes(path).decode("latin-1")
    mount = environ.get("SCRIPT_NAME")
    if mount:
        mount = mount.rstrip("/")
        if path.startswith(mount) and path[len(mount) : len(mount) + 1] in ("", "/"):
            path = path[len(mount) :]
        else:
            mount = ""
        environ["SCRIPT_NAME"] = mount
    environ["PATH_INFO"] = path
    host = environ.get("HTTP_HOST")
    if host:
        environ["SERVER_NAME"], port = _hosts.get(host) or _split_host(host)
        environ["SERVER_PORT"] = port or _DEFAULT_PORTS.get(environ["wsgi.url_scheme"], "80")
    environ["greentx.request"] = request
    length = environ.get("CONTENT_LENGTH")
    if request.method == "WEBSOCKET_HANDSHAKE":
        # A GET (RFC 6455, section 4.1), to which Mongrel2 added a body of its own.
        environ["REQUEST_METHOD"] = "GET"
    elif length is not None or request.body or "HTTP_TRANSFER_ENCODING" in environ:
        _check_framing(environ.get("HTTP_TRANSFER_ENCODING"), length, request, body_apart)


def _add_headers(environ: dict[str, Any], raw: Mapping[Any, Any]) -> None:
    get_key = _keys.get
    for name, value in raw.items():
        key = get_key(name)
        if key is None:
            key = _environ_key(name)
        if key:
            # Mongrel2 passes on blanks behind a value, which are not part of it (RFC 9112, section 5.1).
            if value.__class__ is bytes:
                environ[key] = value.rstrip().decode("latin-1")
            elif value.__class__ is str:
                environ[key] = value.rstrip(" \t")
            else:
                environ[key] = _joined(key, value)


def _check_framing(coding: str | None, length: str | None, request: Request, apart: bool) -> None:
    if coding is not None:
        # Mongrel2 knows this one coding, in this one spelling; of another one it takes the body for the next request.
        if length is not None:
            raise FramingError(f"Transfer-Encoding {coding!r} beside Content-Length {length!r}")
        if coding != "chunked" or not apart:
            raise FramingError(f"Transfer-Encoding {coding!r} cannot be read here")
    elif length is None:
        raise FramingError(f"a body of {len(request.body)} bytes without Content-Length")
    elif not (length.isascii() and length.isdecimal()) or (int(length) != len(request.body) and not apart):
        raise FramingError(f"Content-Length {length[:40]!r} of a body of {len(request.body)} bytes")


def _environ_key(name: bytes | str) -> str:
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    if text in _SERVER_KEYS:
        key = _SERVER_KEYS[text]
    elif text in _CLIENT_KEYS:
        key = _CLIENT_KEYS[text]
    elif text != text.lower() or "_" in text or text.startswith("x-mongrel2-upload-"):
        key = ""
    else:
        key = "HTTP_" + text.upper().replace("-", "_")
    if len(_keys) < _MAX_KEYS:
        _keys[name] = key
    return key


def _joined(key: str, value: Any) -> str:
    values = [(one.decode("latin-1") if isinstance(one, bytes) else one).rstrip(" \t") for one in value]
    if key == "CONTENT_LENGTH" or key == "CONTENT_TYPE":
        if len(set(values)) > 1 and key == "CONTENT_LENGTH":
            raise FramingError(f"Content-Length is said to be {' and '.join(values)}")
        return values[0]
    return ("; " if key == "HTTP_COOKIE" else ",").join(values)


def _split_host(host: str) -> tuple[str, str | None]:
    """Split a ``Host`` header and remember the result. IPv6 addresses lose their brackets, as in ``SERVER_NAME``."""
    name, colon, port = host.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()):
        name, port = host, ""
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    if len(_hosts) >= _MAX_KEYS:
        _hosts.clear()
    result = _hosts[host] = (name, port or None)
    return result
