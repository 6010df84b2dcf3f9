"""Where a front end may be told to listen, as text, without I/O."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from typing import NoReturn

from ..errors import LocalProtocolError

__all__ = ["ListenAddress"]

_LAST_PORT = 65535
_NUMBER = re.compile(r"[0-9]{1,5}", re.ASCII)
_MODE = re.compile(r"(.+),mode=(0?[0-7]{3})", re.DOTALL)
# sizeof(sockaddr_un.sun_path) on Linux less the final NUL.
_MAX_PATH = 107
# A descriptor that no process has: the system's own bound is far below.
_DESCRIPTORS = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListenAddress:
    """One of: a host and a port, the path of a Unix socket, a descriptor.

    Attributes:
        host: An address, or a name for one; ``""`` is every IPv4 address and ``"::"`` every address of both kinds.
        port: Next to it; 0 for a free one.
        path: ``@name`` is an abstract socket of Linux, which has no file.
        mode: Of the file; ``None`` is what the process's umask leaves.
        descriptor: Of a socket that is bound, and may listen already.
    """

    host: str | None = None
    port: int = 0
    path: str | None = None
    mode: int | None = None
    descriptor: int | None = None

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Read ``HOST:PORT``, ``[v6]:PORT``, ``:PORT``, ``PORT``, ``unix:/path``, ``unix:/path,mode=660``, ``fd://N``.

        ``:PORT`` is every IPv4 address, as gevent has it, and a bare ``PORT`` is every address, as ``[::]:PORT`` is.

        Raises:
            LocalProtocolError: (a ``ValueError``) it is none of these; the message says what to write.
        """
        if text.startswith("unix:"):
            return cls._parse_unix(text)
        if text.startswith("fd://"):
            number = text.removeprefix("fd://")
            if not number.isascii() or not number.isdecimal() or int(number) >= _DESCRIPTORS:
                raise LocalProtocolError(f"{text!r} has no number of a descriptor: write fd://3")
            return cls(descriptor=int(number))
        if "://" in text or "/" in text:
            _refuse(text)
        host, colon, port = text.rpartition(":")
        if not port.isascii() or not port.isdecimal():
            # What has no port at all: "localhost", "[::1]".
            if text and (not colon or port.endswith("]")):
                raise LocalProtocolError(f"{text!r} has no port: write {text}:8000")
            _refuse(text)
        if not _NUMBER.fullmatch(port) or int(port) > _LAST_PORT:
            raise LocalProtocolError(f"{text!r} is not HOST:PORT: a port is 0 to {_LAST_PORT}")
        if not colon:
            host = "::"
        elif host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            try:
                ipaddress.IPv6Address(host)
            except ValueError:
                _refuse(text)
        elif ":" in host:
            raise LocalProtocolError(f"{text!r} can be read in two ways: write [{host}]:{port}")
        return cls(host=host, port=int(port))

    @classmethod
    def _parse_unix(cls, text: str) -> ListenAddress:
        path = text.removeprefix("unix:")
        if path.startswith("//"):
            path = path[2:]
        mode = None
        if found := _MODE.fullmatch(path):
            path, mode = found[1], int(found[2], 8)
        if not path or "\0" in path:
            raise LocalProtocolError(f"{text!r} has no path: write unix:/path/of/socket")
        if path.startswith("@") and mode is not None:
            raise LocalProtocolError(f"{text!r} is an abstract socket, which has no file, and no mode")
        # Told now: the program may go to another folder before it starts.
        path = path if path.startswith("@") else os.path.abspath(path)
        if len(os.fsencode(path)) > _MAX_PATH:
            raise LocalProtocolError(f"the path of {text!r} has {len(os.fsencode(path))} bytes, limit {_MAX_PATH}")
        return cls(path=path, mode=mode)

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        if self.descriptor is not None:
            return f"fd://{self.descriptor}"
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def _refuse(text: str) -> NoReturn:
    raise LocalProtocolError(
        f"{text!r} is not an address to listen on: write HOST:PORT, [IPv6]:PORT, unix:/path, or fd://3"
    )
