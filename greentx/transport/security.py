"""Who may connect to a socket that we bind, and as whom we connect: what is set on a socket before it is used.

ZeroMQ asks the program about each peer (ZAP, RFC 27) where its socket has a ZAP domain: by a REQ of its own, inside the
context, to ``inproc://zeromq.zap.01``. One :class:`_Authority` for each context answers, in the hub and at once; of
CURVE keys it asks pyzmq's ``Authenticator``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import zmq
from zmq.auth import Authenticator

from ..errors import LocalProtocolError
from .context import Context
from .endpoints import is_ipv6
from .keys import KeyFile, Keys, public_key

__all__ = ["PRIVATE_NETWORKS", "Access", "Dial", "Networks", "make_dial"]

log = logging.getLogger("greentx.transport")

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"

#: Loopback, private (RFC 1918, RFC 4193) and link-local (RFC 3927, RFC 4291) addresses.
PRIVATE_NETWORKS = (
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
)

# So many refusals are logged in so many seconds, one for each address: whoever is refused may come again at once.
_LINES = 10
_LINES_SECONDS = 60.0


class Networks:
    """Some IP networks.

    Args:
        given: One or several, as text (``"10.0.0.0/8"``, ``"192.0.2.7"``) or as :mod:`ipaddress` makes them.
        option: What error messages call them.

    Raises:
        LocalProtocolError: (a ``ValueError``) One of them is not a network.
    """

    def __init__(self, given: Any, option: str) -> None:
        several: Iterable[Any] = given if isinstance(given, Iterable) and not isinstance(given, (str, bytes)) else ()
        # An ipaddress network is an iterable, too: of its addresses.
        if isinstance(given, (str, ipaddress.IPv4Network, ipaddress.IPv6Network)):
            several = (given,)
        elif several == ():
            raise LocalProtocolError(f"{option} is one network or several, as '10.0.0.0/8'; not {given!r}")
        try:
            self._networks = tuple(ipaddress.ip_network(one) for one in several)
        except (ValueError, TypeError) as error:
            raise LocalProtocolError(f"{option}: {error}; write a network as '10.0.0.0/8'") from error

    def __contains__(self, address: str) -> bool:
        """Whether *address* is in one of them; False for all but IP addresses, whose zone may only be a name."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and not is_ipv6(address):
            return False
        # A dual-stack socket reports IPv4 peers in IPv6 form.
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return any((mapped or ip) in network for network in self._networks)

    def __str__(self) -> str:
        return ", ".join(map(str, self._networks)) or "none"


@dataclass(frozen=True, slots=True)
class Dial:
    """How a socket of ours connects.

    Attributes:
        keys: Our own, where *server_key* is given.
        server_key: The public key of the other side, which has to prove that it has it; ``None`` connects in the clear.
        retry_max: Seconds between two attempts in the end, where they fail again and again; ``None``: always as few.
    """

    keys: Keys | None = None
    server_key: bytes | None = None
    retry_max: float | None = None

    def apply(self, context: Context, socket: zmq.Socket[bytes]) -> None:
        """Set it on *socket*, before it connects."""
        if self.retry_max is not None:
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, int(self.retry_max * 1000))
        if self.server_key is None or self.keys is None:
            return
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server_key)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret)


def make_dial(
    keys: Keys | None, server: KeyFile | None, option: str = "curve_server", retry_max: float | None = None
) -> Dial:
    """Return how to connect to the one whose public key *server* is; ``None`` is in the clear.

    Raises ``LocalProtocolError`` (a ``ValueError``) for a bad key, and where we have none of our own.
    """
    if server is not None and keys is None:
        raise LocalProtocolError(f"{option} needs curve_secret=, a file of our own keys (`greentx keys` makes it)")
    return Dial(keys, None if server is None else public_key(server, option), retry_max)


class Access:
    """Who may connect to sockets that we bind. A refused peer gets nothing, and a line in the log names its address.

    Args:
        name: Of the sockets, for the log.
        networks: Where peers may be; ``None`` does not ask.
        keys: Our own, to demand CURVE; ``None`` lets peers connect in the clear.
        allowed: Their public keys, where CURVE is demanded.
        options: What may be changed to let a peer in: of networks, of keys.
    """

    def __init__(
        self,
        name: str,
        *,
        networks: Networks | None = None,
        keys: Keys | None = None,
        allowed: frozenset[bytes] = frozenset(),
        options: tuple[str, str] = ("control_allow=", "curve_allow="),
    ) -> None:
        self.name = name
        self.networks = networks
        self.keys = keys
        self.allowed = allowed
        self.refused = 0
        """How many connections were refused."""
        self._options = options
        self._address = ""
        self._said: set[str] = set()
        self._since = float("-inf")

    def apply(self, context: Context, socket: zmq.Socket[bytes]) -> None:
        """Set it on *socket*, before it is bound."""
        authority = context.authority
        if authority is None:
            authority = context.authority = _Authority(context)
        socket.setsockopt(zmq.ZAP_DOMAIN, authority.domain_of(self))
        # Closed, not open, should nobody answer.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        if self.keys is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, self.keys.public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret)

    def admits(self, address: str) -> bool:
        """Whether a peer may be at *address*. Its key, if any, is asked about next."""
        self._address = address
        if self.networks is None or address in self.networks:
            return True
        self._refuse(f"it is not in {self._options[0]} ({self.networks})")
        return False

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a peer may have the public *key*, as Z85; ``Authenticator`` asks by this name."""
        if key in self.allowed:
            return True
        self._refuse(f"its key {key.decode()} is not in {self._options[1]}")
        return False

    def _refuse(self, why: str) -> None:
        self.refused += 1
        now = monotonic()
        if now - self._since >= _LINES_SECONDS:
            self._since = now
            self._said.clear()
        if self._address not in self._said and len(self._said) < _LINES:
            self._said.add(self._address)
            log.warning("%s: %s is refused: %s (refused so far: %d)", self.name, self._address, why, self.refused)


class _Authority:
    """Answers what ZeroMQ asks of one context's peers; goes with the context.

    Args:
        context: Owner of the socket.
    """

    def __init__(self, context: Context) -> None:
        self._access: dict[str, Access] = {}
        self._socket = context.socket(zmq.REP)
        # Never a blocking start() of pyzmq's: the socket is one like all others, so it ends as they do.
        self._authenticator = Authenticator(self._socket.context, log=logging.getLogger("greentx.zap"))
        self._authenticator.zap_socket = self._socket
        context.bind(self._socket, _ZAP_ENDPOINT)
        context.watch(self._socket, self._answer)

    def domain_of(self, access: Access) -> bytes:
        """Return the ZAP domain that stands for *access*."""
        for domain, one in self._access.items():
            if one is access:
                return domain.encode()
        domain = str(len(self._access))
        self._access[domain] = access
        self._authenticator.configure_curve_callback(domain, access)
        return domain.encode()

    def _answer(self) -> None:
        while not self._socket.closed:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            # Version, request, domain, address, and more (RFC 27): by ZeroMQ itself, so well-formed.
            try:
                if self._access[parts[2].decode()].admits(parts[3].decode()):
                    _run(self._authenticator.handle_zap_message, parts)
                    continue
                status, why = b"400", b"Address not allowed"
            except Exception:
                # A REP that owes an answer hears no further question, and nobody would be let in any more.
                log.exception("a peer at %s is refused, as it could not be asked about", parts[3])
                status, why = b"500", b"Internal error"
            self._socket.send_multipart([parts[0], parts[1], status, why, b"", b""])


def _run(function: Callable[..., Any], *arguments: object) -> None:
    """Call a coroutine that waits for nothing, since no callback of ours does."""
    with contextlib.suppress(StopIteration):
        function(*arguments).send(None)
