"""The environ of a request (PEP 3333), out of what Mongrel2 sent.

Names that Mongrel2 made up are in upper case and those of the client in lower case, so no client can set ``METHOD`` or
``UPLOAD_STREAM``. Headers with an underscore are left out, since ``X_Real`` and ``X-Real`` would be one key, and those
with which Mongrel2 announces stored bodies, which are not for the application (:mod:`greentx.handler.uploads`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from ..protocol.cache import SmallMap
from ..protocol.framing import FramingError
from ..protocol.headers import text_lines, text_value
from ..protocol.request import Request

__all__ = ["KNOWN_HOSTS", "KNOWN_KEYS", "add_request"]

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

# Names of clients are theirs to make up: what is remembered of them has a bound, and starts anew when that is reached,
# so that names which somebody made up do not keep the usual ones out for good.
KNOWN_KEYS: SmallMap[bytes | str, str] = SmallMap(1024)
KNOWN_HOSTS: SmallMap[str, tuple[str, str | None]] = SmallMap(1024)

# Longer ones are not remembered: what a thousand of them may take is bounded as well.
MAX_KNOWN_SIZE = 256

# The characters of host and port (RFC 3986, section 3.2), in any order: what cannot be a host is refused.
_is_host = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*", re.ASCII).fullmatch

_DEFAULT_PORTS = {"http": "80", "https": "443"}


def add_request(environ: dict[str, Any], request: Request) -> None:
    """Add the keys of one request to *environ*, but those of its body.

    Args:
        environ: What the server was configured with. ``SCRIPT_NAME`` is the path that the application is mounted at; a
            request for another path has it all in ``PATH_INFO``.

    Raises:
        FramingError: A ``Host`` that is not a host; a body that no header announces, as a stand-in for Mongrel2 may
            send it.
    """
    _add_headers(environ, request.raw)
    path = request.path
    # Not every stand-in for Mongrel2 sends URI. gevent has RAW_URI, most others REQUEST_URI.
    environ["REQUEST_URI"] = environ.setdefault("RAW_URI", path)
    # A target in absolute form comes as "//host:81/path", like a path that begins so (probed). It is left as it is: any
    # page can have a browser ask for such a path, and would choose the host that the application checks.
    if "%" in path:
        path = unquote_to_bytes(path).decode("latin-1")
    mount = environ.get("SCRIPT_NAME")
    if mount:
        # SCRIPT_NAME never ends with a slash, PATH_INFO begins with it (PEP 3333, "URL Reconstruction").
        mount = mount.rstrip("/")
        if path.startswith(mount) and path[len(mount) : len(mount) + 1] in ("", "/"):
            path = path[len(mount) :]
        else:
            mount = ""
        environ["SCRIPT_NAME"] = mount
    environ["PATH_INFO"] = path
    host = environ.get("HTTP_HOST")
    if host:
        # Mongrel2 may listen on several addresses and does not tell which one it was.
        environ["SERVER_NAME"], port = KNOWN_HOSTS.get(host) or _split_host(host)
        environ["SERVER_PORT"] = port or _DEFAULT_PORTS.get(environ["wsgi.url_scheme"], "80")
    environ["greentx.request"] = request
    if request.method == "WEBSOCKET_HANDSHAKE":
        # A GET (RFC 6455, section 4.1), to which Mongrel2 added a body of its own.
        environ["REQUEST_METHOD"] = "GET"
    elif request.body and "CONTENT_LENGTH" not in environ:
        raise FramingError(f"a body of {len(request.body)} bytes without Content-Length")


def _add_headers(environ: dict[str, Any], raw: Mapping[Any, Any]) -> None:
    keys = KNOWN_KEYS
    # Mongrel2 passes on blanks behind a value, which are not part of it (RFC 9112, section 5.1).
    try:
        if b"METHOD" in raw:
            for name, value in raw.items():
                environ[keys[name]] = value.rstrip().decode("latin-1")
        else:
            for name, value in raw.items():
                environ[keys[name]] = value.rstrip(" \t")
    except (KeyError, AttributeError, TypeError):
        # A name that is new, or comes twice, or what no Mongrel2 sends.
        _add_unusual(environ, raw)
    # Those that are left out.
    environ.pop("", None)


def _add_unusual(environ: dict[str, Any], raw: Mapping[Any, Any]) -> None:
    for name, value in raw.items():
        key = KNOWN_KEYS.get(name)
        if key is None:
            key = _environ_key(name)
        if value.__class__ is bytes:
            environ[key] = value.rstrip().decode("latin-1")
        elif value.__class__ is str:
            environ[key] = value.rstrip(" \t")
        else:
            environ[key] = _joined(key, value)


def _environ_key(name: bytes | str) -> str:
    text = text_value(name)
    if text in _SERVER_KEYS:
        key = _SERVER_KEYS[text]
    elif text in _CLIENT_KEYS:
        key = _CLIENT_KEYS[text]
    elif text != text.lower() or "_" in text or text.startswith("x-mongrel2-upload-"):
        key = ""
    else:
        key = "HTTP_" + text.upper().replace("-", "_")
    return KNOWN_KEYS.keep(name, key) if len(text) <= MAX_KNOWN_SIZE else key


def _joined(key: str, value: Any) -> str:
    values = [one.rstrip(" \t") for one in text_lines(value)]
    if key == "CONTENT_LENGTH" or key == "CONTENT_TYPE":
        # Several lengths are equal, or the request is refused; a second Content-Type is ignored, as gevent does.
        return values[0] if values else ""
    return ("; " if "COOKIE" in key else ",").join(values)


def _split_host(host: str) -> tuple[str, str | None]:
    """Split a ``Host`` header and remember the result. IPv6 addresses lose their brackets, as in ``SERVER_NAME``.

    Raises ``FramingError`` where it cannot be one (RFC 9112, section 3.2).
    """
    if not _is_host(host):
        raise FramingError(f"Host {host[:40]!r} is not a host")
    name, colon, port = host.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()):
        name, port = host, ""
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    result = (name, port or None)
    return KNOWN_HOSTS.keep(host, result) if len(host) <= MAX_KNOWN_SIZE else result
