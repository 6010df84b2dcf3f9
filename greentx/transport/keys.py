"""CURVE keys: ours, those of others, and the files that they are kept in.

A file is what :mod:`zmq.auth` reads and writes: ``NAME.key`` has a public key, ``NAME.key_secret`` both. A key is 32
bytes, written as 40 characters of Z85 (ZeroMQ RFC 32).
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth import load_certificate
from zmq.utils import z85

from ..errors import LocalProtocolError, TransportError

__all__ = ["KeyFile", "Keys", "load_keys", "make_key_files", "public_key", "public_keys"]

log = logging.getLogger("greentx.transport")

#: A file with a key, by its path; or bytes, the key itself as Z85.
KeyFile = str | os.PathLike[str] | bytes

_Z85_SIZE = 40
_KEY_SIZE = 32


@dataclass(frozen=True, slots=True)
class Keys:
    """A pair of our own.

    Attributes:
        public, secret: As Z85.
    """

    public: bytes
    secret: bytes = field(repr=False)


def load_keys(path: str | os.PathLike[str], option: str = "curve_secret") -> Keys:
    """Read a pair from its ``.key_secret`` file. A WARNING says so where other users may read it, too.

    Args:
        option: What error messages call *path*.

    Raises:
        LocalProtocolError: (a ``ValueError``) There is no such file, or no secret key in it.
        TransportError: This libzmq was built without CURVE.
    """
    _check_curve(option)
    public, secret = _read(path, option)
    if secret is None:
        raise LocalProtocolError(f"{option}={os.fspath(path)!r} has no secret key: name the file NAME.key_secret")
    if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("%s=%r may be read by other users: chmod 600", option, os.fspath(path))
    return Keys(public, _checked(secret, option))


def public_key(given: KeyFile, option: str = "curve_server") -> bytes:
    """Return a public key as Z85; raises as :func:`load_keys`."""
    _check_curve(option)
    return _checked(given, option) if isinstance(given, bytes) else _read(given, option)[0]


def public_keys(given: KeyFile | Iterable[KeyFile], option: str = "curve_allow") -> frozenset[bytes]:
    """Return public keys as Z85: of all ``*.key`` files in a folder, of one file, of several, or the keys themselves.

    Raises as :func:`load_keys`; also where there is not one key.
    """
    _check_curve(option)
    if isinstance(given, (str, os.PathLike)) and os.path.isdir(given):
        found = frozenset(_read(path, option)[0] for path in Path(given).glob("*.key"))
    elif isinstance(given, (str, os.PathLike, bytes)):
        found = frozenset({public_key(given, option)})
    else:
        found = frozenset(public_key(one, option) for one in given)
    if not found:
        raise LocalProtocolError(f"{option}={given!r} has no key: name a folder with files *.key, or files")
    return found


def make_key_files(folder: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
    """Make a new pair; return the paths of ``NAME.key``, for others, and ``NAME.key_secret``, which only we may read.

    Raises:
        LocalProtocolError: *name* cannot be the name of a file.
        TransportError: This libzmq was built without CURVE.
        FileExistsError: One of them is there already; it is left as it is.
        OSError: The folder cannot be written to.
    """
    _check_curve("keys")
    if not name or "/" in name or "\0" in name:
        raise LocalProtocolError(f"{name!r} cannot be the name of a file")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    paths = Path(folder, f"{name}.key"), Path(folder, f"{name}.key_secret")
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} is there already: remove it first, or choose another name")
    # Not by zmq.auth.create_certificates(), which replaces files, and lets everybody read the secret for a moment.
    text = f'metadata\ncurve\n    public-key = "{public}"\n'
    _write(paths[0], 0o644, text)
    _write(paths[1], 0o600, f'{text}    secret-key = "{secret}"\n')
    return paths


def _write(path: Path, mode: int, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="ascii") as file:
        file.write(text)


def _read(path: str | os.PathLike[str], option: str) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        raise LocalProtocolError(f"{option}={os.fspath(path)!r}: {error}; `greentx keys` makes such files") from error
    return _checked(public, option), secret


def _checked(key: bytes, option: str) -> bytes:
    # Not by curve_public(), which is for secret keys; what is not on the curve fails at the handshake.
    try:
        is_key = len(key) == _Z85_SIZE and len(z85.decode(key)) == _KEY_SIZE
    except (KeyError, ValueError, struct.error):  # what z85 raises for characters, and for digits, that are too large
        is_key = False
    if not is_key:
        raise LocalProtocolError(f"{option}: a key is {_Z85_SIZE} characters of Z85, not {len(key)} bytes of something")
    return key


def _check_curve(option: str) -> None:
    if not zmq.has("curve"):
        raise TransportError(
            f"{option}: this libzmq ({zmq.zmq_version()}) was built without CURVE: install pyzmq from its wheels, or "
            "build libzmq with libsodium"
        )
