"""Which Node has which session of an application's, where requests say by a parameter of their query whose they are.

A session that an application keeps in its memory, such as one of Engine.IO (``?EIO=4&transport=polling&sid=...``), is
at one Node, while its requests come over many connections of a browser, or of a proxy. The Node claims it with the
answer that opens it; from then on requests with that parameter go there, whatever their connection. What is unknown is
waited for by the relay for :data:`CLAIM_SECONDS`: the answer goes straight to Mongrel2, so the next request may come
before the claim.

A *key* is ``name=value``, percent-encoded in one way only, so that it is one word on the wire and two spellings of a
value are one session. No I/O here.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from typing import Final, Generic, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ..errors import LocalProtocolError, RemoteProtocolError
from ..protocol.fields import shown

__all__ = [
    "CLAIM_BYTES",
    "CLAIM_SECONDS",
    "MAX_CLAIMS",
    "MAX_CLAIM_BYTES",
    "MAX_KEY",
    "Claims",
    "OwnClaims",
    "StickyNames",
    "make_key",
    "parse_key",
]

#: How long a request with an unknown value waits for its claim.
CLAIM_SECONDS: Final = 0.05

#: The longest key, in bytes. Requests with a longer value belong to no session.
MAX_KEY: Final = 1024

#: What one Node may have claimed; beyond it, what was used longest ago is dropped.
MAX_CLAIMS: Final = 100_000
MAX_CLAIM_BYTES: Final = 32 << 20

#: What a claim takes next to its key.
CLAIM_BYTES: Final = 256

# In one message: at most 512 KiB of them.
_KEYS_AT_ONCE: Final = 500

NodeT = TypeVar("NodeT", bound=Hashable)

_is_plain = re.compile(rb"[A-Za-z0-9_.~-]+").fullmatch
_is_key = re.compile(rb"[A-Za-z0-9_.~%-]+=[A-Za-z0-9_.~%-]+").fullmatch


def make_key(name: str, value: str | bytes) -> bytes:
    """Return the key of one session.

    Args:
        name: Of the query's parameter.
        value: Decoded; ``str`` stands for its UTF-8.

    Raises:
        LocalProtocolError: (a ``ValueError``) Name or value is empty, or the key would be longer than :data:`MAX_KEY`.
    """
    key = b"%b=%b" % (_encoded(name.encode()), _encoded(value.encode() if isinstance(value, str) else bytes(value)))
    if not _is_key(key):
        raise LocalProtocolError(f"a claim needs a name and a value, not {name!r} and {value!r}")
    if len(key) > MAX_KEY:
        raise LocalProtocolError(f"claim of {shown(name)} is {len(key)} bytes, limit {MAX_KEY}")
    return key


def parse_key(word: bytes) -> bytes:
    """Return the key that a Node claims. Raises ``RemoteProtocolError`` where the word is not one."""
    if len(word) > MAX_KEY or not _is_key(word):
        raise RemoteProtocolError(f"{shown(word)} claims no session")
    return word


def _encoded(value: bytes) -> bytes:
    return value if _is_plain(value) else quote_from_bytes(value, safe="").encode()


class StickyNames:
    """The names of the parameters that say which session a request belongs to.

    Args:
        names: In order: where a query has several of them, the first that somebody claimed counts.

    Raises:
        LocalProtocolError: (a ``ValueError``) A plain str in the place of names, or a name that is empty.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        # A str is a collection of str as well: "sid" would be s, i and d.
        if isinstance(names, str):
            raise LocalProtocolError(f"sticky is a str, {names!r}: give a list of names")
        self.names = tuple(names)
        # As somebody may write it in a query, and as it stands in a key.
        self._starts = [(f"{name}=".encode(), make_key(name, "x")[:-1]) for name in self.names]

    def __bool__(self) -> bool:
        return bool(self.names)

    def has(self, key: bytes) -> bool:
        """Return whether a key begins with one of the names: else no query has it."""
        return any(key.startswith(prefix) for _, prefix in self._starts)

    def occur_in(self, message: bytes) -> bool:
        """Return whether the query of a request without a body may have one of the names: one search each."""
        # Nearly always there is one name, and any() costs more than the search.
        if len(self._starts) == 1:
            return self._starts[0][0] in message
        return any(start in message for start, _ in self._starts)

    def keys_of(self, query: bytes) -> list[bytes]:
        """Return the keys that a query has, in the order of the names; of a repeated name the first.

        Never raises: a client may send anything.
        """
        keys: list[bytes] = []
        for start, prefix in self._starts:
            # Nearly all queries have none.
            if start not in query:
                continue
            for pair in query.split(b"&"):
                if pair.startswith(start):
                    value = pair[len(start) :]
                    if not _is_plain(value):
                        value = _encoded(unquote_to_bytes(value.replace(b"+", b" ")))
                    if value and len(prefix) + len(value) <= MAX_KEY:
                        keys.append(prefix + value)
                    break
        return keys


class Claims(Generic[NodeT]):
    """The sessions that Nodes have claimed.

    Args:
        max_claims, max_bytes: What one Node may have claimed.

    Attributes:
        dropped: How many claims were dropped because their Node had too many.
    """

    def __init__(self, max_claims: int = MAX_CLAIMS, max_bytes: int = MAX_CLAIM_BYTES) -> None:
        self._max_claims = max_claims
        self._max_bytes = max_bytes
        self._owners: dict[bytes, NodeT] = {}
        # Of each Node, what was used longest ago first.
        self._used: dict[NodeT, dict[bytes, None]] = {}
        self._bytes: dict[NodeT, int] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, key: bytes, node: NodeT) -> None:
        """*node* has the session of that key; a session that another one had claimed is its own from now on."""
        self._drop(key)
        self._owners[key] = node
        used = self._used.setdefault(node, {})
        used[key] = None
        held = self._bytes.get(node, 0) + len(key) + CLAIM_BYTES
        self._bytes[node] = held
        while len(used) > self._max_claims or self._bytes[node] > self._max_bytes:
            self._drop(next(iter(used)))
            self.dropped += 1

    def owner(self, key: bytes) -> NodeT | None:
        """Return the Node that has the session of that key, ``None`` where nobody claimed it."""
        node = self._owners.get(key)
        if node is not None:
            used = self._used[node]
            del used[key]
            used[key] = None
        return node

    def forget(self, node: NodeT) -> None:
        """*node* has gone, or is leaving: its sessions are nobody's."""
        for key in self._used.pop(node, ()):
            del self._owners[key]
        self._bytes.pop(node, None)

    def _drop(self, key: bytes) -> None:
        node = self._owners.pop(key, None)
        if node is not None:
            del self._used[node][key]
            self._bytes[node] -= len(key) + CLAIM_BYTES


class OwnClaims:
    """What one Node has claimed, to be told again to a relay that does not know it any more.

    Args:
        max_claims, max_bytes: As for :class:`Claims`: a relay keeps no more of one Node.
    """

    def __init__(self, max_claims: int = MAX_CLAIMS, max_bytes: int = MAX_CLAIM_BYTES) -> None:
        self._max_claims = max_claims
        self._max_bytes = max_bytes
        self._keys: dict[bytes, None] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: bytes) -> None:
        """It has claimed that key; beyond the bounds the oldest are forgotten."""
        if key in self._keys:
            del self._keys[key]
        else:
            self._bytes += len(key) + CLAIM_BYTES
        self._keys[key] = None
        while len(self._keys) > self._max_claims or self._bytes > self._max_bytes:
            oldest = next(iter(self._keys))
            del self._keys[oldest]
            self._bytes -= len(oldest) + CLAIM_BYTES

    def heads(self) -> Iterator[bytes]:
        """Yield the heads of messages that tell all of them, oldest first."""
        keys = list(self._keys)
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            yield b"claims " + b" ".join(keys[start : start + _KEYS_AT_ONCE])
