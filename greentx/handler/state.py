"""What an application keeps of one WebSocket, for the process that goes on with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from ..errors import LocalProtocolError

__all__ = ["MAX_STATE", "State"]

#: Bytes of one WebSocket's state, as JSON.
MAX_STATE = 64 * 1024


class State(MutableMapping[str, Any]):
    """A mapping that is JSON of at most :data:`MAX_STATE` bytes. Each change is written through as it is made.

    ``json.dumps`` takes no mapping of ours: give it ``dict(state)``.

    Values come back as JSON has them, tuples as lists. A change inside of a value is not seen: set the item anew.

    Args:
        written: What was written last, as JSON; empty for nothing.
        write: Called with the whole, as JSON, after each change; ``None`` keeps it here only.
    """

    __slots__ = ("_items", "_write")

    def __init__(self, written: bytes = b"", write: Callable[[bytes], None] | None = None) -> None:
        self._items: dict[str, Any] = json.loads(written) if written else {}
        self._write = write

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __setitem__(self, key: str, value: Any) -> None:
        """Raises ``LocalProtocolError``, and changes nothing, where the key is not text, the value not JSON, or the
        whole too large.
        """
        if not isinstance(key, str):
            raise LocalProtocolError(f"a key of a WebSocket's state is str, not {type(key).__name__}")
        self._change({**self._items, key: value})

    def __delitem__(self, key: str) -> None:
        if key not in self._items:
            raise KeyError(key)
        self._change({name: value for name, value in self._items.items() if name != key})

    # In one go, where MutableMapping's own write once for each item.
    def update(self, *others: Any, **more: Any) -> None:
        """Set several items at once, or none of them."""
        added = dict(*others, **more)
        for key in added:
            if not isinstance(key, str):
                raise LocalProtocolError(f"a key of a WebSocket's state is str, not {type(key).__name__}")
        if added:
            self._change({**self._items, **added})

    def clear(self) -> None:
        """Remove all items."""
        if self._items:
            self._change({})

    def _change(self, items: dict[str, Any]) -> None:
        try:
            # NaN is not JSON (RFC 8259, section 6).
            text = json.dumps(items, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise LocalProtocolError(f"a WebSocket's state is JSON: {error}") from error
        if len(text) > MAX_STATE:
            raise LocalProtocolError(f"a WebSocket's state is {len(text)} bytes of JSON, limit {MAX_STATE}")
        self._items = json.loads(text)
        if self._write is not None:
            self._write(text)

    def __repr__(self) -> str:
        return repr(self._items)
