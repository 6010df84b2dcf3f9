"""What a client may make the front end read and keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import LocalProtocolError
from ..config import DEFAULT_SETTINGS

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds on one request, by Mongrel2's names where it has them (``limits.buffer_size`` is ``buffer_size``).

    Attributes:
        buffer_size: Bytes of a head, or of the trailers behind a chunked body, each with its empty line; beyond it 431.
        line_size: Bytes of one line of a head without its CRLF; beyond it 414 for the first line, 431 for the others.
        header_count: Fields of a head, or of the trailers; beyond it 431.
        content_length: Bytes of a body that is handed on with its request.
        upload_size: Bytes of a body that is stored or streamed; 0 where neither is done.

    Raises:
        LocalProtocolError: A limit is not a whole number, or too small for any request.
    """

    buffer_size: int = int(DEFAULT_SETTINGS["limits.buffer_size"])
    # Proxies let as much pass. RFC 9112, section 3, asks for 8000 at the least.
    line_size: int = 32768
    # Mongrel2's own number. Its default here has no meaning: Mongrel2 drops what is beyond it, and this front end
    # refuses the request.
    header_count: int = 1280
    content_length: int = int(DEFAULT_SETTINGS["limits.content_length"])
    upload_size: int = 0

    def __post_init__(self) -> None:
        # The shortest request line, "A / HTTP/1.1", and the empty lines behind it.
        minima = {"buffer_size": 16, "line_size": 12, "header_count": 1, "content_length": 0, "upload_size": 0}
        for name, least in minima.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise LocalProtocolError(f"limit {name} is {value!r}: the minimum is {least}")

    @property
    def body_size(self) -> int:
        """Bytes of any body; beyond it 413, before any of it that is announced is read."""
        return max(self.content_length, self.upload_size)

    @classmethod
    def of(cls, settings: Mapping[str, int | str], *, upload_size: int = 0) -> Limits:
        """Return the limits that settings of Mongrel2 say (``limits.content_length``); others are ignored.

        Raises:
            LocalProtocolError: One of them is not a whole number, or too small.
        """
        names = [name for name in ("buffer_size", "header_count", "content_length") if f"limits.{name}" in settings]
        values = {name: settings[f"limits.{name}"] for name in names}
        # What every Mongrel2 is started with, so that it drops none: here it would only make hostile heads dear.
        if values.get("header_count") == DEFAULT_SETTINGS["limits.header_count"]:
            del values["header_count"]
        for name, value in values.items():
            if not str(value).isdecimal():
                raise LocalProtocolError(f"setting limits.{name} is {value!r}, which is not a whole number")
        return cls(**{name: int(value) for name, value in values.items()}, upload_size=upload_size)
