"""What the arbiter and its workers are to do: which relay there is, and how a worker serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ..transport.endpoints import connect_endpoint
from ..wsgi import TrustedProxies
from ..wsgi.listeners import control_options, parse_url
from .settings import CONNECT_VARIABLE, find_settings, parse_settings

__all__ = ["Plan", "make_plan"]

# What belongs to the relay, wherever that is; workers need the bounds and the store as well.
_OF_RELAY = ("bind", "front_end", "connect", "max_message_size", "origins", "ping_timeout", "retry")
_OF_BOTH = ("max_pending_bytes", "max_queue_bytes", "upload_store")
_CONTROL = ("control", "control_allow", "curve_secret", "curve_allow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All of it.

    Attributes:
        serves: What is served, in words, for the log.
        relay: The address of a relay elsewhere; empty: the arbiter starts one.
        words: What that one is told, as arguments of ``greentx relay``.
        node: Options of a worker's :class:`~greentx.relay.Node`.
        server: Options of a worker's :class:`~greentx.wsgi.WSGIServer`.
        graceful_timeout: Seconds, where they are not gunicorn's.
    """

    serves: str
    relay: str = ""
    words: tuple[str, ...] = ()
    node: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    server: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    graceful_timeout: float | None = None

    def seconds_to_end(self, cfg: Any) -> float:
        """Return how long requests may take when the server ends."""
        return float(cfg.graceful_timeout if self.graceful_timeout is None else self.graceful_timeout)


def make_plan(cfg: Any) -> Plan:
    """Return what gunicorn's settings, and those of ours, say.

    Raises:
        ValueError: One is wrong or missing; the message names it.
    """
    found = find_settings(cfg)
    settings = parse_settings(found)
    control = control_options(
        settings.get("control", ""),
        settings.get("control_allow", ()),
        settings.get("curve_secret", ""),
        settings.get("curve_allow", ()),
    )
    node = {name: settings[name] for name in _OF_BOTH if name in settings}
    server = {"trusted_proxies": TrustedProxies(cfg.forwarded_allow_ips, cfg.secure_scheme_headers)}
    relay = settings.get("relay", "")
    if relay:
        for name in _OF_RELAY:
            if name in settings:
                raise ValueError(f"{found[name][0]} belongs to the relay at {relay}; say it there")
        connect_endpoint(relay)
        # The control socket of a worker: with several of them the port is 0.
        node |= {"rep_port": False} if control is None else control
        return Plan(serves=f"the relay at {relay}", relay=relay, node=node, server=server)
    if settings.get("bind"):
        if settings.get("connect"):
            raise ValueError(f"{found['bind'][0]} and {found['connect'][0]} exclude each other")
    elif not settings.get("connect"):
        raise ValueError(f"{CONNECT_VARIABLE} is not set: mongrel2://SENDER@HOST?pull=9999&pub=9998")
    for url in settings.get("connect", ()):
        parse_url(url)
    if "front_end" in settings and not settings.get("bind"):
        raise ValueError(f"{found['front_end'][0]} is about a front end of our own (GREENTX_BIND)")
    return Plan(
        serves=", ".join(settings.get("connect") or [f"front end at {settings['bind']}"]),
        words=tuple(_words(settings)),
        node={**node, "rep_port": False},
        server=server,
    )


def _words(settings: Mapping[str, Any]) -> Iterator[str]:
    """Return them as options of ``greentx relay``."""
    for name in (*_OF_RELAY, *_OF_BOTH, *_CONTROL):
        value = settings.get(name, ())
        option = f"--{name.replace('_', '-')}"
        if value and name in ("origins", "retry"):
            yield f"{option}={','.join('none' if one is None else one for one in value)}"
        elif isinstance(value, (list, tuple)):
            yield from (f"{option}={one}" for one in value)
        elif name != "origins":
            # None is "no limit", or "never", which is written so.
            yield f"{option}={0 if value is None else value}"
