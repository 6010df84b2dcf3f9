"""The fields that Mongrel2's messages are made of: senders, connection ids, text and bytes.

Source: Mongrel2's manual, "Writing A Handler"; src/handler_parser.rl; probed on 1.12.2.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator

from ..errors import LocalProtocolError

__all__ = [
    "CONN_ID",
    "CONTROL_ID",
    "MAX_CONN_IDS",
    "MAX_SHOWN",
    "NOT_DECODED",
    "batch_conn_ids",
    "check_sender",
    "checked_body",
    "encode_sender",
    "encode_text",
    "is_mongrel2_sender",
    "shown",
]


#: Characters that an error text shows of what was wrong.
MAX_SHOWN = 200

#: Ids in one reply. Mongrel2 drops a message with more of them whole (``limits.handler_targets``, probed).
MAX_CONN_IDS = 128

#: What tnetstring raises of bytes from outside: a name that is a list is a TypeError, nesting a RecursionError, a digit
#: of a number that is not ASCII an OverflowError (probed, tnetstring3 0.4.0).
NOT_DECODED = (ValueError, TypeError, RecursionError, OverflowError)

#: The connection id in messages of the control socket and their answers: no browser has it.
CONTROL_ID = "-1"
_SENDER = re.compile(r"[A-Za-z0-9-]+", re.ASCII)

# What a stand-in for Mongrel2 may be called: a space would end it in a message, and a log has one line for an event.
_STAND_IN_SENDER = re.compile(r"[^\x00-\x20\x7f]+")

# Mongrel2's ids and credits are 32-bit numbers; int() of thousands of digits would raise.
#: What an id is, written in decimal. See the module for the one of the control socket.
CONN_ID = re.compile(r"[0-9]{1,20}", re.ASCII)


def check_sender(sender: str | bytes, *, mongrel2: bool = True) -> str:
    """Return *sender* as text, if the server that it names can parse it back in a reply.

    Args:
        mongrel2: It names a Mongrel2. False: a :class:`~greentx.Server`, or one of mongrel2-transceiver's, which splits
            messages at their spaces and has no other rule.

    Raises:
        LocalProtocolError: *sender* is empty, or has other characters than letters, digits and ``-``. Mongrel2 accepts
            such a ``send_ident``, but rejects every reply that begins with it, with a stall of 0.5 s each (probed). For
            a stand-in: it is empty, or has a space or a control character.
    """
    text = sender.decode("latin-1") if isinstance(sender, bytes) else sender
    if not mongrel2:
        if not isinstance(text, str) or not _STAND_IN_SENDER.fullmatch(text):
            raise LocalProtocolError(f"sender {shown(sender)} is empty, or has a space or a control character in it")
    elif not isinstance(text, str) or not _SENDER.fullmatch(text):
        raise LocalProtocolError(
            f"sender {shown(sender)} cannot be answered: Mongrel2 reads letters, digits and '-' only; "
            "change its send_ident"
        )
    return text


def is_mongrel2_sender(sender: str) -> bool:
    """Return whether Mongrel2 itself could have this sender; a stand-in may have others, too."""
    return _SENDER.fullmatch(sender) is not None


def encode_sender(sender: str) -> bytes:
    """Return the bytes that begin a message of *sender*, the same on both sides: one that was parsed is latin-1."""
    return encode_text(sender)


def encode_text(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    # latin-1 gives back the bytes that parsing made text of. Text from the application may hold more: it becomes UTF-8.
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return _encode_utf8(text)
    except AttributeError:
        raise LocalProtocolError(f"{shown(text)} is a {type(text).__name__}, not str or bytes") from None


def _encode_utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"{text!r} cannot be written as UTF-8: {error.reason}") from error


def checked_body(body: bytes) -> bytes:
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise LocalProtocolError(f"a body is bytes, not {type(body).__name__}")
    # A copy only where it is not bytes already: a view could change before it is sent.
    return bytes(body)


def batch_conn_ids(conn_ids: Iterable[str | int]) -> Iterator[list[str]]:
    """Yield *conn_ids* as text in lists of at most 128."""
    batch: list[str] = []
    for conn_id in conn_ids:
        batch.append(conn_id if isinstance(conn_id, str) else str(conn_id))
        if len(batch) == MAX_CONN_IDS:
            yield batch
            batch = []
    if batch:
        yield batch


def shown(value: object) -> str:
    """Return *value* for an error message: its ``repr``, cut to :data:`MAX_SHOWN` characters.

    Of what is neither text nor bytes, such as a list that nests, its outermost levels are shown.
    """
    # What came from outside may be megabytes; an error text with all of it would be logged, answered and kept.
    text = repr(value[:MAX_SHOWN]) if isinstance(value, (str, bytes)) else reprlib.repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
