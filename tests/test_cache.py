"""The two bounded memories: of what came twice, and of small things."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from greentx.protocol.cache import MAX_KEY_SIZE, Memo, SmallMap
from greentx.protocol.http1 import build_head
from greentx.protocol.request import Request


def test_what_comes_again_is_kept_and_what_came_once_is_not():
    """The first time it is only noted."""
    memo: Memo[int] = Memo(4)
    assert not memo.seen_before(b"a")
    assert not memo.seen_before(b"b")
    assert memo.seen_before(b"a")
    assert not memo.known  # the caller puts it in


def test_it_holds_no_more_than_its_limit():
    """Of what is known and of what came once."""
    memo: Memo[int] = Memo(4)
    for number in range(100):
        key = b"%d" % number
        if memo.seen_before(key) or memo.seen_before(key):
            memo.known[key] = number
        assert len(memo.known) <= 4
    assert memo.known[b"99"] == 99
    # Of a hundred that came once or twice, no more than four are remembered.
    assert sum(memo.seen_before(b"%d" % number) for number in range(99, -1, -1)) <= 4


def test_large_keys_are_never_kept():
    """One would take the room of many."""
    memo: Memo[int] = Memo(4)
    assert not any(memo.seen_before(bytes(MAX_KEY_SIZE + 1)) for _ in range(3))
    assert [memo.seen_before(bytes(MAX_KEY_SIZE)) for _ in range(2)] == [False, True]


def test_a_small_map_starts_anew_when_it_is_full():
    """Junk cannot keep out what is useful: the next one that comes is kept again."""
    small: SmallMap[str, int] = SmallMap(4)
    for number in range(100):
        assert small.keep(f"junk-{number}", number) == number
        assert 1 <= len(small) <= 4
    small.keep("useful", 1)
    assert small.get("useful") == 1
    assert small.get("junk-0") is None


@pytest.mark.parametrize(
    "use",
    [
        lambda text: build_head(200, text, {}),
        lambda text: Request("s", "1", "/", {"VERSION": text, "connection": "close"}).persistence(),
        lambda text: Request("s", "1", "/", {"VERSION": "HTTP/1.1", "connection": text}).persistence(),
        lambda text: Request("s", "1", "/", {"VERSION": "HTTP/1.1", "connection": [text, text]}).persistence(),
    ],
)
@pytest.mark.parametrize(("size", "is_kept"), [(10, True), (5000, False)])
def test_long_texts_are_not_remembered(use: Callable[[str], object], size: int, is_kept: bool) -> None:
    """A thousand of them would be megabytes; the reference count tells whether one is kept."""
    text = "x" * size
    before = sys.getrefcount(text)
    use(text)
    assert (sys.getrefcount(text) > before) == is_kept
