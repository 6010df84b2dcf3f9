"""What a client may make the front end read and keep, without I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import LocalProtocolError
from ..config import DEFAULT_SETTINGS

__all__ = ["Limits", "UploadSettings"]

# Bytes of the largest body. Mongrel2 reads a length as an int, and so do handlers: a larger one is none (probed).
_LARGEST = 2**31 - 1

# What strtoul(3) reads.
_MODE = re.compile(r"0x(?P<hex>[0-9a-fA-F]{1,4})|0(?P<octal>[0-7]{1,5})|(?P<decimal>[1-9][0-9]{0,4})")


@dataclass(frozen=True)
class UploadSettings:
    """What becomes of bodies over ``limits.content_length``; with neither the answer is 413.

    Attributes:
        store: ``upload.temp_store``: where they are stored, a path that ends in ``XXXXXX``; ``None`` for nowhere.
        mode: ``upload.temp_store_mode``: of the files.
        stream: ``upload.stream``: they go to handlers in pieces, chunked ones of any size; not stored then.
        largest: Bytes of the largest of them; beyond it 413, as for all of them where it is 0.
    """

    store: str | None = None
    mode: int = 0o600
    stream: bool = False
    largest: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, int | str], largest: int | None = None) -> UploadSettings:
        """Return what these settings of Mongrel2 say; others are ignored.

        Args:
            largest: ``None`` is what Mongrel2 knows at the most, 2 GiB less one byte.

        Raises:
            LocalProtocolError: A value means nothing.
        """
        store = settings.get("upload.temp_store")
        if store is not None and not (isinstance(store, str) and store.endswith("XXXXXX") and store.isprintable()):
            raise LocalProtocolError(f"setting upload.temp_store is {store!r}: it has to be a path that ends in XXXXXX")
        mode = settings.get("upload.temp_store_mode", "0600")
        found = _MODE.fullmatch(str(mode))
        if found is None:
            raise LocalProtocolError(f"setting upload.temp_store_mode is {mode!r}: write it in octal, as '0600'")
        bits = int(found["hex"] or "0", 16) or int(found["octal"] or "0", 8) or int(found["decimal"] or 0)
        if not 0 < bits <= 0o777:
            raise LocalProtocolError(f"setting upload.temp_store_mode is {mode!r}, which is not a mode of files")
        stream = settings.get("upload.stream", 0)
        if stream not in (0, 1, "0", "1"):
            raise LocalProtocolError(f"setting upload.stream is {stream!r}: write 1 or 0")
        if store is None and not int(stream):
            if largest is not None:
                raise LocalProtocolError(
                    "bodies have a bound of their own only with upload.temp_store or upload.stream"
                )
            return cls(mode=bits)
        if largest is None:
            largest = _LARGEST
        elif not 0 < largest <= _LARGEST:
            raise LocalProtocolError(f"bodies of {largest} bytes: the minimum is 1, the maximum {_LARGEST}")
        return cls(store, bits, bool(int(stream)), largest)


@dataclass(frozen=True)
class Limits:
    """Bounds on one request, by Mongrel2's names where it has them (``limits.buffer_size`` is ``buffer_size``).

    Attributes:
        buffer_size: Bytes of a head, or of the trailers behind a chunked body, each with its empty line; beyond it 431.
        line_size: Bytes of one line of a head without its CRLF; beyond it 414 for the first line, 431 for the others.
        header_count: Fields of a head, or of the trailers; beyond it 431.
        content_length: Bytes of a body that is handed on with its request.
        uploads: What becomes of larger ones.
        message_size: Bytes of a WebSocket message as it travels, and so of a frame; beyond it the WebSocket is closed
            with 1009, before any of a frame that is larger is read. ``None`` is no limit.
        relaxed: ``request.relaxed``: braces and carets may stand in a target.

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
    uploads: UploadSettings = UploadSettings()
    message_size: int | None = 16 * 1024 * 1024
    relaxed: bool = False

    def __post_init__(self) -> None:
        # The shortest request line, "A / HTTP/1.1", and the empty lines behind it.
        minima = {"buffer_size": 16, "line_size": 12, "header_count": 1, "content_length": 0}
        if self.message_size is not None:
            minima["message_size"] = 0
        for name, least in minima.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise LocalProtocolError(f"limit {name} is {value!r}: the minimum is {least}")

    @property
    def body_size(self) -> int:
        """Bytes of any body; beyond it 413, before any of it that is announced is read."""
        return max(self.content_length, self.uploads.largest)

    @classmethod
    def of(
        cls,
        settings: Mapping[str, int | str],
        *,
        max_upload: int | None = None,
        message_size: int | None = 16 * 1024 * 1024,
    ) -> Limits:
        """Return the limits that settings of Mongrel2 say (``limits.content_length``); others are ignored.

        Args:
            max_upload: See :meth:`UploadSettings.of`.
            message_size: No setting of Mongrel2's says it.

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
        relaxed = settings.get("request.relaxed", 0)
        if not str(relaxed).isdecimal():
            raise LocalProtocolError(f"setting request.relaxed is {relaxed!r}: write 1 or 0")
        return cls(
            **{name: int(value) for name, value in values.items()},
            uploads=UploadSettings.of(settings, max_upload),
            message_size=message_size,
            relaxed=int(relaxed) != 0,
        )
