"""The settings of gunicorn's workers: where they are said, and what is made of each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from ..edge.choice import choose
from ..errors import FrontEndNotFound
from ..protocol.websocket.origins import parse_origins
from ..transport.endpoints import connect_endpoint

__all__ = ["CONNECT_VARIABLE", "find_settings", "parse_settings"]

#: Where the URLs are looked for, in the environment.
CONNECT_VARIABLE = "GREENTX_CONNECT"


def _texts(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [str(one) for one in value]


def _whole_number(value: Any, minimum: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= minimum:
        return value
    raise ValueError(f"use a whole number of bytes, {minimum} or more")


def _bytes_or_none(value: Any) -> int | None:
    return _whole_number(value, 0) or None


def _bytes(value: Any) -> int:
    return _whole_number(value, 1)


def _seconds_or_none(value: Any) -> float | None:
    try:
        seconds = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError("use a number of seconds; 0 sends no pings")
    return seconds or None


def _names(value: Any) -> list[str]:
    return value.replace(",", " ").split() if isinstance(value, str) else [str(one) for one in value]


def _relay(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("use HOST:PORT of a relay elsewhere; without it gunicorn starts one")
    connect_endpoint(value)
    return value


def _origins(value: Any) -> list[str | None] | None:
    if not isinstance(value, str):
        value = ",".join("none" if one is None else str(one) for one in value)
    return parse_origins(value) if value else None


def _front_end(value: Any) -> str:
    try:
        return choose(value)
    except FrontEndNotFound as error:
        raise ValueError(str(error)) from error


def _mongrel2s(value: Any) -> None:
    raise ValueError("workers of gunicorn start no mongrel2; set it in the configuration of yours")


# By what follows "greentx_": what is made of a value, be it a text or what a configuration file may say instead.
_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "bind": str,
    "connect": _texts,
    "control": str,
    "control_allow": _texts,
    "curve_allow": _texts,
    "curve_secret": str,
    "front_end": _front_end,
    "max_message_size": _bytes_or_none,
    "max_pending_bytes": _bytes,
    "max_queue_bytes": _bytes,
    "mongrel2_settings": _mongrel2s,
    "origins": _origins,
    "ping_timeout": _seconds_or_none,
    "relay": _relay,
    "retry": _names,
    "upload_store": str,
}


def find_settings(cfg: Any) -> dict[str, tuple[str, Any]]:
    """Return each setting that is set, by what follows ``greentx_``: its full name, and its value as it stands there.

    Raises:
        ValueError: A name is unknown; the message says which may have been meant.
    """
    found: dict[str, tuple[str, Any]] = {}
    # The last one counts.
    for source, prefix in ((os.environ, "GREENTX_"), (_configuration(cfg), "greentx_"), (cfg.env, "GREENTX_")):
        for name, value in source.items():
            if not name.startswith(prefix):
                continue
            key = name.removeprefix(prefix).lower()
            if key in _SETTINGS:
                found[key] = name, value
            # Variables of the environment may be for other programs.
            elif source is not os.environ:
                meant = get_close_matches(key, _SETTINGS, 1)
                hint = f"did you mean {prefix}{_cased(meant[0], prefix)}?" if meant else f"there are {_listed(prefix)}"
                raise ValueError(f"{name} is not a setting: {hint}")
    return found


def _cased(name: str, prefix: str) -> str:
    return name.upper() if prefix.isupper() else name


def _listed(prefix: str) -> str:
    return ", ".join(prefix + _cased(name, prefix) for name in _SETTINGS)


def _configuration(cfg: Any) -> dict[str, Any]:
    """Return the names of gunicorn's configuration file, which keeps no setting that is not its own."""
    location = str(cfg.config or "")
    name = location.removeprefix("python:") if location.startswith("python:") else "__config__"
    return vars(sys.modules[name]) if name in sys.modules else {}


def parse_settings(found: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return the values of :func:`find_settings`, converted. Raises ``ValueError``, which names the setting."""
    values: dict[str, Any] = {}
    for key, (name, value) in found.items():
        try:
            if value != "":  # as if it were not set
                values[key] = _SETTINGS[key](value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is {value!r}: {error}") from error
    return values
