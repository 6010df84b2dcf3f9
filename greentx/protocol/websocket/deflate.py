"""permessage-deflate (RFC 7692): its negotiation for both roles, and the state of one connection.

Mongrel2 passes the RSV bits through in both directions (probed), so the extension is entirely a matter between the
browser and the handler.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from ...errors import LocalProtocolError, RemoteProtocolError
from ..cache import SmallMap
from ..fields import shown

__all__ = [
    "DeflateConfig",
    "ExtensionOffer",
    "PerMessageDeflate",
    "accept",
    "negotiate",
    "offer",
    "parse_extensions",
]

ExtensionOffer: TypeAlias = "tuple[str, list[tuple[str, str | None]]]"
"""One extension of the header: its name, its parameters in order; ``None`` is a parameter without a value."""

_NAME: Final = "permessage-deflate"
_SYNC_TAIL: Final = b"\x00\x00\xff\xff"  # what a sync flush ends with, and what stays off the wire (section 7.2.1)

# An ended deflate stream inside a message (BFINAL, section 7.2.3.4) costs a new decompressor and a copy of the rest, so
# that a message made of nothing else would take quadratic time. Peers that end the stream at all do it once a message.
_MAX_STREAMS: Final = 16

# RFC 9110, section 5.6.2; a parameter's value may be quoted (RFC 6455, section 9.1).
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_EXTENSION: Final = re.compile(rf"[ \t]*({_TOKEN})[ \t]*")
_PARAMETER: Final = re.compile(rf';[ \t]*({_TOKEN})[ \t]*(?:=[ \t]*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")[ \t]*)?')
_TOKEN_ONLY: Final = re.compile(_TOKEN)
_ESCAPED: Final = re.compile(r"\\(.)")
_BITS: Final = {str(bits): bits for bits in range(8, 16)}  # decimal without leading zeros (section 7.1.2)

# Plain numbers: frames.py, which has their names, imports this module.
_INVALID_DATA: Final = 1007
_TOO_BIG: Final = 1009


# zlib's own classes have no public names.
class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self, mode: int, /) -> bytes: ...


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeflateConfig:
    """What this side wants of permessage-deflate. The names of parameters are those of RFC 7692, section 7.1.

    The defaults keep a connection that has both sent and received compressed messages at about 49 KB: see
    :class:`PerMessageDeflate`. With 15, 15 and 8 (zlib's own) it would be 301 KB.

    Attributes:
        server_no_context_takeover: The server forgets after each message what it sent. It compresses less and holds no
            memory between messages.
        client_no_context_takeover: The same of the client. As a server we ask for it, and any client has to comply.
        server_max_window_bits: 9-15, the base-2 logarithm of the window that the server compresses with.
        client_max_window_bits: 9-15, the same of the client. A server can only ask clients that say they understand
            the parameter (all browsers that have the extension do); the others use 15.
        level: -1 (zlib's choice, 6) to 9; 0 does not compress at all.
        mem_level: 1-9, memory against speed of our compressor; never negotiated.
        threshold: Messages of fewer bytes go out uncompressed; empty ones always do. What fits into one TCP segment
            anyway gains nothing but the work on both sides.

    Raises:
        LocalProtocolError: A number is out of range. Window bits of 8 exist in the RFC, but zlib has no raw deflate
            with them.
    """

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int = 12
    client_max_window_bits: int = 12
    level: int = -1
    mem_level: int = 5
    threshold: int = 256

    def __post_init__(self) -> None:
        for name, low, high in (
            ("server_max_window_bits", 9, 15),
            ("client_max_window_bits", 9, 15),
            ("level", -1, 9),
            ("mem_level", 1, 9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise LocalProtocolError(f"{name} is {value!r}, not {low} to {high}")
        if self.threshold < 0:
            raise LocalProtocolError(f"threshold is {self.threshold!r}: a number of bytes, 0 or more")


# One key for all connections that agreed on the same: it is looked up for each recipient of a broadcast.
_broadcast_keys: SmallMap[tuple[int, ...], tuple[int, ...]] = SmallMap(64)


class PerMessageDeflate:
    """The extension as it was agreed on for one connection: compresses what we send, inflates what comes.

    Memory (zlib's own formulas, zconf.h): the compressor takes ``2 ** (encoding_bits + 2) + 2 ** (mem_level + 9)``
    bytes and about 6 KB, the decompressor ``2 ** decoding_bits`` and about 7 KB. Either exists only from its first
    message on, and, without context takeover in its direction, only while one message is worked on. So a connection
    that was never used costs the object alone; with the defaults of :class:`DeflateConfig` a busy one costs 38 KB and
    11 KB, the latter 39 KB where the client cannot be asked for a smaller window. Inflating a message takes no more
    than *max_size* + 1 bytes for the result.

    Not to be shared by connections. Messages are decoded in the order of their arrival, and sent in the order in which
    they were encoded.

    Attributes:
        broadcast_key: Equal for connections which may be sent the same bytes, which :meth:`encode_alone` of any of them
            makes. Where ``encodes_with_context`` is true, :meth:`reset_encoder` has to be called on each that they
            are sent to.
    """

    __slots__ = (
        "_decoder",
        "_encoder",
        "_level",
        "_mem_level",
        "_threshold",
        "broadcast_key",
        "decodes_with_context",
        "decoding_bits",
        "encodes_with_context",
        "encoding_bits",
    )

    def __init__(
        self,
        *,
        encodes_with_context: bool,
        decodes_with_context: bool,
        encoding_bits: int,
        decoding_bits: int,
        level: int = -1,
        mem_level: int = 5,
        threshold: int = 256,
    ) -> None:
        """Usually made by :func:`negotiate` or :func:`accept`.

        Args:
            encodes_with_context: What we send may refer to messages that we sent before.
            decodes_with_context: What the peer sends may refer to messages that it sent before.
            encoding_bits: 9-15, our window.
            decoding_bits: 8-15, the peer's window at most.
            level, mem_level, threshold: See :class:`DeflateConfig`.
        """
        self.encodes_with_context = encodes_with_context
        self.decodes_with_context = decodes_with_context
        self.encoding_bits = encoding_bits
        # For the decompressor only; a larger window than the peer's reads all that it writes.
        # A peer on zlib that agreed on 8 may well compress with 9: zlib quietly does so.
        self.decoding_bits = max(decoding_bits, 9)
        self._level = level
        self._mem_level = mem_level
        self._threshold = threshold
        # Not whether there is a context: a message that refers to no other one is right for both kinds.
        key = (encoding_bits, level, mem_level, threshold)
        self.broadcast_key = _broadcast_keys.get(key) or _broadcast_keys.keep(key, key)
        # Made when first needed: most connections are idle, and many only send or only receive.
        self._encoder: _Compressor | None = None
        self._decoder: _Decompressor | None = None

    def __repr__(self) -> str:
        return (
            f"<PerMessageDeflate encodes with {self.encoding_bits} bits{self._say(self.encodes_with_context)}, "
            f"decodes with {self.decoding_bits} bits{self._say(self.decodes_with_context)}>"
        )

    def encode(self, payload: bytes) -> tuple[bytes, bool]:
        """Compress one message for this connection.

        Returns:
            The payload of the frame, and whether it is compressed, in which case the frame needs RSV1. It is left alone
            below the threshold, and, without a context, where compressing would not make it smaller.

        Source: RFC 7692, section 7.2.1.
        """
        if not self.encodes_with_context:
            return self.encode_alone(payload)
        # An empty message has a compressed form of one byte (section 7.2.3.6), which is one more than it has itself.
        if not payload or len(payload) < self._threshold:
            return payload, False
        # With a context it goes out compressed even where it grew: the window has moved by then.
        if self._encoder is None:
            self._encoder = self._new_encoder()
        return self._deflate(self._encoder, payload), True

    def encode_alone(self, payload: bytes) -> tuple[bytes, bool]:
        """As :meth:`encode`, referring to no other message, and leaving the state of this connection as it is."""
        if not payload or len(payload) < self._threshold:
            return payload, False
        # A compressor of its own, so that no other message's window moves.
        compressed = self._deflate(self._new_encoder(), payload)
        return (compressed, True) if len(compressed) < len(payload) else (payload, False)

    def reset_encoder(self) -> None:
        """Forget what was sent so far, and give the memory back.

        Allowed at any time between two messages: a sender with a context may refer to what it sent, but need not. Due
        after a compressed message that did not come from this object's :meth:`encode`, since the peer's window has then
        moved without ours; after uncompressed ones it is not, they are not part of the window.
        """
        self._encoder = None

    def decode(self, payload: bytes, max_size: int | None) -> bytes:
        """Inflate one compressed message.

        Args:
            payload: Of all its fragments together.
            max_size: The most bytes that may come out; inflating stops one byte after. ``None`` is unlimited.

        Raises:
            RemoteProtocolError: 1009 above *max_size*; 1007 where it is not a deflate stream. The state is then lost,
                and with it the connection.

        Source: RFC 7692, section 7.2.2. It names no close code; 1007 is for data that contradicts the kind of its
        message (RFC 6455, section 7.4.1).
        """
        # Without a context each message begins with an empty window, as it did on the peer's side.
        decoder = self._decoder
        if decoder is None:
            decoder = zlib.decompressobj(-self.decoding_bits)
        try:
            data, decoder = self._inflate(decoder, payload + _SYNC_TAIL, max_size)
        except zlib.error as error:
            raise RemoteProtocolError(f"message does not inflate: {error}", close_code=_INVALID_DATA) from error
        if self.decodes_with_context:
            self._decoder = decoder
        return data

    def _new_encoder(self) -> _Compressor:
        return zlib.compressobj(self._level, zlib.DEFLATED, -self.encoding_bits, self._mem_level)

    @staticmethod
    def _deflate(encoder: _Compressor, payload: bytes) -> bytes:
        # A sync flush, not a full one: it ends at a byte and keeps the window.
        return (encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH))[: -len(_SYNC_TAIL)]

    def _inflate(self, decoder: _Decompressor, data: bytes, max_size: int | None) -> tuple[bytes, _Decompressor]:
        """Inflate a message, however often it ends the stream; return the decompressor for the next one too."""
        parts: list[bytes] = []
        size = 0
        for _ in range(_MAX_STREAMS):
            # One byte more than allowed, which shows that there are more, without making them. 0 means no limit.
            part = decoder.decompress(data, 0 if max_size is None else max_size + 1 - size)
            size += len(part)
            if max_size is not None and size > max_size:
                raise RemoteProtocolError(f"message inflates to more than {max_size} bytes", close_code=_TOO_BIG)
            parts.append(part)
            if not decoder.eof:
                return part if len(parts) == 1 else b"".join(parts), decoder
            data = decoder.unused_data
            # A sender that ended its stream begins a new one, whose window is empty on its side too.
            decoder = zlib.decompressobj(-self.decoding_bits)
            if data == _SYNC_TAIL:
                # It did not append the empty block that section 7.2.3.4 shows, so there is nothing to go on with.
                return b"".join(parts), decoder
        raise RemoteProtocolError(f"message holds more than {_MAX_STREAMS} deflate streams", close_code=_INVALID_DATA)

    @staticmethod
    def _say(context: bool) -> str:
        return " and context" if context else ""


def parse_extensions(values: str | Iterable[str]) -> list[ExtensionOffer]:
    """Parse ``Sec-WebSocket-Extensions``, given once or several times, into offers in order of preference.

    Raises:
        RemoteProtocolError: It does not keep the grammar, status 400. RFC 6455, section 9.1, has such a connection
            failed, where the offers inside a well-formed header may be skipped.
    """
    # By a parser, not by split(): a quoted value may hold commas and semicolons.
    extensions: list[ExtensionOffer] = []
    for value in (values,) if isinstance(values, str) else values:
        position = 0
        while position < len(value):
            if value[position] in ", \t":  # empty elements of a list are allowed (RFC 9110, section 5.6.1)
                position += 1
                continue
            extension, position = _parse_extension(value, position)
            extensions.append(extension)
            if position < len(value) and value[position] != ",":
                raise _malformed(value, position)
    return extensions


def _parse_extension(value: str, position: int) -> tuple[ExtensionOffer, int]:
    """One element of the list, and where it ends."""
    found = _EXTENSION.match(value, position)
    if found is None:
        raise _malformed(value, position)
    name = found[1]
    parameters: list[tuple[str, str | None]] = []
    position = found.end()
    while found := _PARAMETER.match(value, position):
        word = found[2]
        if found[3] is not None:
            word = _ESCAPED.sub(r"\1", found[3])
            if not _TOKEN_ONLY.fullmatch(word):  # quoted or not, it has to be a token
                raise _malformed(value, position)
        parameters.append((found[1], word))
        position = found.end()
    return (name, parameters), position


def _malformed(value: str, position: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"Sec-WebSocket-Extensions is malformed at index {position}: {shown(value)}")


def negotiate(values: str | Iterable[str], config: DeflateConfig) -> tuple[PerMessageDeflate, str] | None:
    """As a server, accept the first offer of permessage-deflate that can be kept.

    An offer is skipped, not an error, where a parameter is unknown, given twice or has a wrong value, and where it
    wants a ``server_max_window_bits`` of 8, with which zlib cannot compress.

    Args:
        values: The client's header.
        config: What we want. The client's wishes only ever make windows smaller and contexts shorter.

    Returns:
        The state for the connection and the header value for the 101 answer; ``None`` without an acceptable offer: then
        the header stays out of the answer, and the connection is uncompressed.

    Raises:
        RemoteProtocolError: As :func:`parse_extensions`.

    Source: RFC 7692, sections 5.1 and 7.1.
    """
    for name, parameters in parse_extensions(values):
        # A client may offer it several times, with fewer parameters as it goes on (section 5.1): the order is its wish.
        wanted = _read_parameters(parameters) if name == _NAME else None
        if wanted is None or wanted.server_bits == 8:
            continue
        # Each side may ask for less of the other, never for more (section 7.1).
        server_forgets = wanted.server_forgets or config.server_no_context_takeover
        client_forgets = wanted.client_forgets or config.client_no_context_takeover
        server_bits = min(wanted.server_bits or 15, config.server_max_window_bits)
        # A client that does not name the parameter may not be asked to keep it (section 7.1.2.2).
        client_bits = min(wanted.client_bits or 15, config.client_max_window_bits) if wanted.knows_client_bits else 15
        answer = [_NAME]
        if server_forgets:
            answer.append("server_no_context_takeover")
        if client_forgets:
            answer.append("client_no_context_takeover")
        # An answer must repeat this one if the offer had it, and may have it in any case (section 7.1.2.1) ...
        if server_bits < 15 or wanted.server_bits:
            answer.append(f"server_max_window_bits={server_bits}")
        # ... but this one only if the offer had it (section 7.1.2.2).
        if client_bits < 15:
            answer.append(f"client_max_window_bits={client_bits}")
        return _agree(config, not server_forgets, not client_forgets, server_bits, client_bits), "; ".join(answer)
    return None


def offer(config: DeflateConfig) -> str:
    """As a client, the value of ``Sec-WebSocket-Extensions`` that asks for *config*."""
    words = [_NAME]
    if config.server_no_context_takeover:
        words.append("server_no_context_takeover")
    if config.client_no_context_takeover:
        words.append("client_no_context_takeover")
    if config.server_max_window_bits < 15:
        words.append(f"server_max_window_bits={config.server_max_window_bits}")
    words.append("client_max_window_bits")  # without a value 15 is meant, and the server may ask for less
    if config.client_max_window_bits < 15:
        words[-1] += f"={config.client_max_window_bits}"
    return "; ".join(words)


def accept(values: str | Iterable[str], config: DeflateConfig) -> PerMessageDeflate | None:
    """As a client, check the server's answer to :func:`offer` of the same *config*.

    Args:
        values: The header of the 101 answer; an empty list where there is none.

    Returns:
        The state for the connection; ``None`` where the server declined.

    Raises:
        RemoteProtocolError: The answer is malformed, names an extension that was not offered, the same one twice, or
            parameters that do not fit the offer. The connection has to be failed (RFC 7692, section 5.1).
    """
    # None is an answer: the server need not have the extension.
    answers = parse_extensions(values)
    if not answers:
        return None
    name, parameters = answers[0]
    if name != _NAME or len(answers) > 1:
        raise RemoteProtocolError(f"server answered with {len(answers)} extensions ({shown(name)}), one was offered")
    # An answer agrees on a number, so it has to give one.
    given = _read_parameters(parameters)
    if given is None or (given.knows_client_bits and given.client_bits is None):
        raise RemoteProtocolError(f"server answered permessage-deflate with wrong parameters: {parameters}")
    if config.server_no_context_takeover and not given.server_forgets:
        raise RemoteProtocolError("server did not agree to server_no_context_takeover")
    # Left out means 15: more than we have asked for is more memory than we have planned for.
    server_bits = given.server_bits or 15
    if server_bits > config.server_max_window_bits:
        raise RemoteProtocolError(
            f"server compresses with {server_bits} window bits, {config.server_max_window_bits} were offered"
        )
    # 8 is in the RFC, but zlib compresses with 9 then, which the server's window would not hold.
    client_bits = given.client_bits or config.client_max_window_bits
    if not 9 <= client_bits <= config.client_max_window_bits:
        raise RemoteProtocolError(
            f"server wants {client_bits} window bits of us, we can do 9 to {config.client_max_window_bits}"
        )
    # What we announced is kept, whether or not the server repeats it (section 7.1.1.2).
    client_forgets = given.client_forgets or config.client_no_context_takeover
    return _agree(config, not client_forgets, not given.server_forgets, client_bits, server_bits)


def _agree(
    config: DeflateConfig,
    encodes_with_context: bool,
    decodes_with_context: bool,
    encoding_bits: int,
    decoding_bits: int,
) -> PerMessageDeflate:
    return PerMessageDeflate(
        encodes_with_context=encodes_with_context,
        decodes_with_context=decodes_with_context,
        encoding_bits=encoding_bits,
        decoding_bits=decoding_bits,
        level=config.level,
        mem_level=config.mem_level,
        threshold=config.threshold,
    )


@dataclass(frozen=True, slots=True)
class _Parameters:
    """The parameters of one offer or answer; bits are ``None`` where no value was given."""

    server_forgets: bool
    client_forgets: bool
    server_bits: int | None
    client_bits: int | None
    knows_client_bits: bool


def _read_parameters(parameters: Sequence[tuple[str, str | None]]) -> _Parameters | None:
    """Read the parameters of permessage-deflate; ``None`` where one is unknown, doubled or has a wrong value."""
    # A parameter given twice makes the offer invalid (section 7.1), whatever its values.
    found = dict(parameters)
    if len(found) != len(parameters):
        return None
    knows_client_bits = "client_max_window_bits" in found
    bits: dict[str, int | None] = {"server_max_window_bits": None, "client_max_window_bits": None}
    for name, value in parameters:
        if name in bits:
            # Only client_max_window_bits may come without a value, and only in an offer (section 7.1.2.2).
            if value is None and name == "server_max_window_bits":
                return None
            if value is not None:
                # A look-up, not int(): that accepts "+9", " 9" and "0_9", too.
                if value not in _BITS:
                    return None
                bits[name] = _BITS[value]
        elif name not in ("server_no_context_takeover", "client_no_context_takeover") or value is not None:
            return None
    return _Parameters(
        "server_no_context_takeover" in found,
        "client_no_context_takeover" in found,
        bits["server_max_window_bits"],
        bits["client_max_window_bits"],
        knows_client_bits,
    )
