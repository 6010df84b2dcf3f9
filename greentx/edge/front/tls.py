"""TLS towards browsers: what makes it, and a socket that speaks it.

The standard library's TLS works on bytes here, not on a descriptor: so one greenlet reads while another one writes, and
what the system does not take now waits as bytes that are encrypted already.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

from gevent import socket
from gevent.socket import wait_write

from ...errors import LocalProtocolError
from .answers import build_answer

__all__ = ["TlsFiles", "TlsSocket"]

log = logging.getLogger("greentx.edge.front")

# The first byte of TLS, a record of its handshake; what is not TLS at all hardly ever begins with it.
_HANDSHAKE = b"\x16"
# Bytes that are encrypted at once: what the system does not take of it waits in memory.
_AT_ONCE = 131072

_VERIFY = ("ssl.ca_chain", "ssl.verify_optional", "ssl.verify_required")


class TlsFiles:
    """What a server proves itself by, and asks of its clients.

    Args:
        certfile: A PEM file with a certificate (chain); ``None``: *context* has it all.
        keyfile: A PEM file with its key; ``None`` where *certfile* holds it.
        context: Used as it is, in place of all others.
        settings: Of them ``ssl.ca_chain``, a PEM file of those who sign certificates of clients;
            ``ssl.verify_optional`` and ``ssl.verify_required``: 1 asks clients for theirs. Mongrel2 hands on the
            fingerprint of an optional one that nobody has signed; here it has to be signed, too.

    Raises:
        LocalProtocolError: They do not go together.
    """

    def __init__(
        self,
        certfile: str | os.PathLike[str] | None,
        keyfile: str | os.PathLike[str] | None,
        context: ssl.SSLContext | None,
        settings: Mapping[str, int | str],
    ) -> None:
        if keyfile is not None and certfile is None:
            raise LocalProtocolError(f"keyfile {keyfile!r} needs a certfile")
        if context is not None and certfile is not None:
            raise LocalProtocolError("ssl_context has a certificate of its own: leave out certfile, or ssl_context")
        if context is not None and not isinstance(context, ssl.SSLContext):
            raise LocalProtocolError(f"ssl_context is {context!r}, which is not an ssl.SSLContext")
        chain, *verify = (settings.get(name, 0) for name in _VERIFY)
        for name, value in zip(_VERIFY[1:], verify, strict=True):
            if str(value) not in ("0", "1"):
                raise LocalProtocolError(f"setting {name} is {value!r}: write 1 or 0")
        optional, required = (int(value) for value in verify)
        given = [name for name in _VERIFY if settings.get(name)]
        if given and certfile is None:
            raise LocalProtocolError(f"setting {given[0]} needs a certfile")
        if (optional or required) and not chain:
            raise LocalProtocolError(f"setting {given[0]} needs ssl.ca_chain: nobody could have signed a certificate")
        self._certfile = None if certfile is None else os.fspath(certfile)
        self._keyfile = None if keyfile is None else os.fspath(keyfile)
        self._context = context
        self._chain = str(chain) if chain else None
        self._verify = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL if optional else ssl.CERT_NONE

    def __bool__(self) -> bool:
        """Whether TLS is spoken at all."""
        return self._certfile is not None or self._context is not None

    def load(self) -> ssl.SSLContext | None:
        """Read the files, as they are now.

        Raises:
            OSError: One of them cannot be read; it is named.
            LocalProtocolError: One of them is not what it should be.
        """
        certfile, keyfile = self._certfile, self._keyfile
        if certfile is None:
            return self._context
        for name in (certfile, keyfile, self._chain):
            if name is not None:
                # Python's own error does not say which one it is.
                with open(name, "rb"):
                    pass
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # RFC 8996: older ones must not be spoken.
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A client that asks for one handshake after the other costs much more than it spends.
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(certfile, keyfile, _no_password)
        except ssl.SSLError as error:
            raise LocalProtocolError(
                f"certfile {certfile!r} cannot be used: it and its key, in {keyfile or certfile!r}, are not PEM, or do"
                f" not belong together ({error.reason or error})"
            ) from error
        if self._chain is not None and self._verify != ssl.CERT_NONE:
            try:
                context.load_verify_locations(self._chain)
            except ssl.SSLError as error:
                raise LocalProtocolError(
                    f"setting ssl.ca_chain is {self._chain!r}, which is not certificates in PEM ({error.reason})"
                ) from error
            context.verify_mode = self._verify
        return context


class TlsSocket:
    """A connection that speaks TLS, with those methods of a socket that a browser connection calls.

    The handshake is a part of the first :meth:`recv`; nothing may be sent before that has returned.

    Args:
        sock: Belongs to it from here on.
        context: What speaks.
        address: Of the client, for the log.

    Attributes:
        on_ready: Called once the handshake is whole, with Mongrel2's fingerprint of the client's certificate, or
            ``None`` where it has none; nothing is called any more then.
    """

    __slots__ = (
        "_address",
        "_context",
        "_encrypted",
        "_from_client",
        "_sock",
        "_tls",
        "_to_client",
        "_unsent",
        "fileno",
        "on_ready",
    )

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, address: str) -> None:
        self.on_ready: Callable[[bytes | None], None] | None = _ignore
        self.fileno: Callable[[], int] = sock.fileno
        self._sock = sock
        self._context = context
        self._address = address
        # A client that says nothing has none of it: a TLS object takes much memory.
        self._tls: ssl.SSLObject | None = None
        self._from_client = ssl.MemoryBIO()
        self._to_client = ssl.MemoryBIO()
        # What the system has not taken yet, and of how many bytes of the caller's that is.
        self._unsent = b""
        self._encrypted = 0

    def pending(self) -> int:
        """Return more than 0 where something has come already that :meth:`recv` has not returned yet."""
        return 0 if self._tls is None else self._from_client.pending or self._tls.pending()

    def recv(self, size: int) -> bytes:
        """Return the next bytes, ``b""`` at the end, also where the client has not said that it is one (RFC 9112,
        section 9.8: whether something is missing is for the message to say). Blocks this greenlet.

        Raises:
            OSError: The connection was reset, or what came is not TLS.
        """
        tls = self._tls or self._begin(size)
        if tls is None:
            return b""
        has_more = self.pending() > 0
        while True:
            if not has_more:
                data = self._sock.recv(size)
                if not data:
                    # Not told to OpenSSL: it would refuse to send what is due.
                    return b""
                self._from_client.write(data)
            has_more = False
            try:
                if self.on_ready is not None:
                    self._shake_hands(tls, self.on_ready)
                return tls.read(size)
            except ssl.SSLWantReadError:
                self._push_all()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                # The client is told why.
                self._push()
                log.debug("TLS of %s failed: %s", self._address, error.reason or error)
                raise

    def send(self, data: bytes | memoryview, flags: int = 0, timeout: float | None = None) -> int:
        """Send as much as goes at once; return how many bytes. *timeout* is ``None``, or 0.

        What could not be sent has to be sent again before anything else is, or never.

        Raises:
            BlockingIOError: With 0: nothing could be sent.
            OSError: The connection has gone.
        """
        if not self._encrypted:
            assert self._tls is not None
            self._encrypted = self._tls.write(memoryview(data)[:_AT_ONCE])
        if timeout is None:
            self._push_all()
        elif not self._push():
            raise BlockingIOError
        sent, self._encrypted = self._encrypted, 0
        return sent

    def shutdown(self, how: int) -> None:
        """As of a socket; a client that has been sent everything is told that this is the end. Never blocks."""
        # With something left the answer is cut short, and must not look whole.
        if how == socket.SHUT_WR and self._tls is not None and self.on_ready is None and not self._unsent:
            # It raises because the client has not said the same yet; until it does it is still read.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            with contextlib.suppress(OSError):
                self._push()
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close it."""
        self._sock.close()

    def detach(self) -> int:
        """Return its descriptor; it is closed to all others."""
        return int(self._sock.detach())

    def _begin(self, size: int) -> ssl.SSLObject | None:
        """Wait for the first bytes, and have them read as TLS; ``None`` where they are not, or never come."""
        data = self._sock.recv(size)
        if data[:1] == _HANDSHAKE:
            self._from_client.write(data)
            self._tls = self._context.wrap_bio(self._from_client, self._to_client, server_side=True)
            return self._tls
        if data:
            log.debug("%s does not speak TLS", self._address)
            if data[:1].isupper():
                why = "this port speaks HTTPS, and was sent a request without TLS"
                with contextlib.suppress(OSError):
                    self._sock.send(build_answer(400, why, timestamp=time.time()), 0, 0.0)
        return None

    def _shake_hands(self, tls: ssl.SSLObject, on_ready: Callable[[bytes | None], None]) -> None:
        tls.do_handshake()
        self.on_ready = None
        # What ends it, and tickets.
        self._push_all()
        certificate = tls.getpeercert(binary_form=True)
        # Mongrel2 writes one byte more than the 20 that there are (probed).
        on_ready(hashlib.sha1(certificate).hexdigest().upper().encode() + b"00" if certificate else None)

    def _push(self) -> bool:
        """Send what is encrypted, as far as the system takes it now; return whether that is all of it."""
        if self._to_client.pending:
            self._unsent += self._to_client.read()
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent, 0, 0.0)
            except BlockingIOError:
                return False
            self._unsent = self._unsent[sent:]
        return True

    def _push_all(self) -> None:
        # Not by a call that blocks: meanwhile another greenlet may send some of it.
        while not self._push():
            wait_write(self.fileno())


def _no_password() -> NoReturn:
    # OpenSSL would ask for it on the terminal.
    raise LocalProtocolError(
        "the key is encrypted: give one without a passphrase, or an ssl_context that it was loaded into"
    )


def _ignore(fingerprint: bytes | None) -> None:
    """Nobody asked."""
