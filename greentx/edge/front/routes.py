"""Which handler a path leads to: Mongrel2's routes, without I/O.

A route is a prefix of paths, or a prefix and a pattern in parentheses behind it; ``/two/`` also means ``/two``. The
longest prefix decides alone: where its pattern does not match there is no other try.

Mongrel2 also takes the beginning of a route for the route (``/p`` leads to ``/page``, where no route is ``/p``;
probed): an accident of its search tree, by which one application sees requests for another. Here it does not.

Source: Mongrel2's manual, "Routes" and "Pattern Matching"; src/routing.c, src/pattern.c; probed on 1.12.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Generic, TypeVar

from ...errors import LocalProtocolError

__all__ = ["Routes"]

T = TypeVar("T")

# Of patterns, by the letter behind the backslash; an upper-case one means all other characters.
_CLASSES = {
    "a": "A-Za-z",
    "c": r"\x00-\x1f\x7f",
    "d": "0-9",
    "l": "a-z",
    "p": r"!-/:-@\[-`{-~",
    "s": r"\t-\r ",
    "u": "A-Z",
    "w": "0-9A-Za-z",
    "x": "0-9A-Fa-f",
    "z": r"\x00",
}
_QUANTIFIERS = {"*": "*", "+": "+", "-": "*?", "?": "?"}


class Routes(Generic[T]):
    """The routes of one host.

    Args:
        routes: What they lead to, by route.

    Raises:
        LocalProtocolError: A route is empty, is not ASCII, or its pattern cannot be read.
    """

    def __init__(self, routes: Mapping[str, T]) -> None:
        self._found: dict[bytes, tuple[re.Pattern[bytes] | None, bytes, T]] = {}
        for route, target in routes.items():
            if not route or not route.isascii():
                raise LocalProtocolError(f"route {route!r} is not a path in ASCII: percent-encode it")
            prefix, parenthesis, _ = route.partition("(")
            pattern = _pattern(route, len(prefix)) if parenthesis else None
            if prefix.encode() in self._found:
                raise LocalProtocolError(f"route {route!r} begins as another one does: only one of them would be found")
            self._found[prefix.encode()] = (pattern, route.encode(), target)
        self._lengths = sorted({len(prefix) for prefix in self._found}, reverse=True)

    def match(self, path: bytes) -> tuple[bytes, T] | None:
        """Return the route of *path* as it was written, and what it leads to; ``None`` where there is none."""
        found = self._found.get(path) or self._found.get(path + b"/")
        if found is None:
            for length in self._lengths:
                found = self._found.get(path[:length])
                if found is not None:
                    break
            else:
                return None
        pattern, route, target = found
        # Not up to the end of the path: Mongrel2 does not look at what is behind.
        if pattern is not None and pattern.match(path) is None:
            return None
        return route, target


def _pattern(route: str, at: int) -> re.Pattern[bytes]:
    made = [re.escape(route[:at])]
    while at < len(route):
        character = route[at]
        at += 1
        if character in "()":
            made.append(character)
            continue
        if character == "$" and at == len(route):
            made.append(r"\Z")
            continue
        if character == "[":
            end = route.find("]", at + (2 if route.startswith("^", at) else 1))
            if end < 0:
                raise LocalProtocolError(f"route {route!r} has a '[' without its ']'")
            one = f"[{_set(route, route[at:end])}]"
            at = end + 1
        elif character == "\\":
            one = f"[{_class(route, route[at : at + 1], inside=False)}]"
            at += 1
        else:
            one = "." if character == "." else re.escape(character)
        quantifier = _QUANTIFIERS.get(route[at : at + 1])
        if quantifier is not None:
            one += quantifier
            at += 1
        made.append(one)
    try:
        return re.compile("".join(made).encode(), re.DOTALL)
    except re.error as error:
        raise LocalProtocolError(f"the pattern of route {route!r} cannot be read: {error}") from error


def _set(route: str, text: str) -> str:
    made = []
    if text.startswith("^"):
        made.append("^")
        text = text[1:]
    characters = iter(enumerate(text))
    for at, character in characters:
        if character == "\\":
            next(characters, None)
            made.append(_class(route, text[at + 1 : at + 2], inside=True))
        elif character == "-" and 0 < at < len(text) - 1:
            made.append("-")
        else:
            made.append(re.escape(character))
    return "".join(made)


def _class(route: str, letter: str, *, inside: bool) -> str:
    if letter in _CLASSES:
        return _CLASSES[letter]
    if letter.lower() in _CLASSES and not inside:
        return f"^{_CLASSES[letter.lower()]}"
    if not letter or letter.isalnum():
        raise LocalProtocolError(f"route {route!r} has '\\{letter}', which is not a class of characters here")
    return re.escape(letter)
