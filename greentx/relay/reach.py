"""Where a Node reaches what its relay names. No I/O."""

from __future__ import annotations

from ipaddress import ip_address

from ..errors import LocalProtocolError
from ..transport.endpoints import endpoint_address

__all__ = ["reachable"]


def reachable(endpoint: str, relay: str) -> str:
    """Return *endpoint*, as the relay names it, as it is reached from here.

    What is on every interface there, or on the relay's own host, is on the host that we reach the relay by.

    Args:
        relay: The endpoint of the relay that we connect to.
    """
    try:
        (host, port), (relay_host, _) = endpoint_address(endpoint), endpoint_address(relay)
    except LocalProtocolError:
        return endpoint  # not TCP
    if not _is_there_only(host) or _is_loopback(relay_host):
        return endpoint if not _is_unspecified(host) else f"tcp://{_bracketed(relay_host)}:{port}"
    return f"tcp://{_bracketed(relay_host)}:{port}"


def _is_there_only(host: str) -> bool:
    return _is_loopback(host) or _is_unspecified(host)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_unspecified(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
