"""The two bounded memories: of what came twice, and of small things."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from greentx.protocol.cache import MAX_KEY_SIZE, Memo, SmallMap, rough_size
from greentx.protocol.http1 import build_head
from greentx.protocol.request import Request, parse_request
from greentx.protocol.requests import build_request


def test_what_comes_again_is_kept_and_what_came_once_is_not():
    """The first time it is only noted."""
    memo: Memo[int] = Memo(4000)
    memo.keep(b"a", 1)
    memo.keep(b"b", 2)
    assert not memo.known
    memo.keep(b"a", 3)
    assert memo.known == {b"a": 3}


def come_until_kept(memo: Memo[int], key: bytes, value: int) -> None:
    """Once it was full it takes in one of many."""
    for _ in range(10000):
        if key not in memo.known:
            memo.keep(key, value)
    assert memo.known[key] == value


def test_it_holds_no_more_bytes_than_its_limit():
    """Counted by the size of what is kept: many small ones, or few large ones."""
    for size, most in ((10, 400), (100, 250), (2000, 30)):
        memo: Memo[int] = Memo(limit := 1 << 17)
        for number in range(most * 2):
            key = b"%d" % number + bytes(size)
            come_until_kept(memo, key, number)
            assert sum(map(rough_size, memo.known)) <= limit
        assert most / 2 < len(memo.known) < most


def test_when_it_is_full_most_stay():
    """A quarter goes, so that not all have to be learnt again at once."""
    memo: Memo[int] = Memo(100 * rough_size(b"1000"))
    before = 0
    for number in range(1000, 1300):
        come_until_kept(memo, b"%d" % number, number)
        assert len(memo.known) == before + 1 or (before == 100 and len(memo.known) == 76)
        before = len(memo.known)


def test_more_than_it_can_hold_that_come_in_turn_are_found_more_often_than_not():
    """Where the oldest were dropped, each would be dropped just before it comes."""
    memo: Memo[int] = Memo(100 * rough_size(b"1000"))
    hits = 0
    for _ in range(100):
        for number in range(1000, 1120):
            key = b"%d" % number
            if key in memo.known:
                hits += 1
            else:
                memo.keep(key, number)
    assert hits > 100 * 120 / 2


def test_the_rough_size_of_headers_is_about_the_real_one():
    """Also of hundreds of tiny ones, of which most is not their text."""
    for headers in (
        {f"header-{number}": "v" * 40 for number in range(14)},
        {f"h{number}": f"v{number}" for number in range(150)},
        {"cookie": "x" * 1500},
    ):
        for protocol in ("tnetstring", "json"):
            message = build_request("s", 1, "/", {"METHOD": "GET", "host": "h", **headers}, protocol=protocol)
            raw = parse_request(message).raw
            real = sum(map(sys.getsizeof, (message, raw, *raw, *raw.values())))
            assert 0.6 * real < rough_size(message) < 1.6 * real


def test_names_that_came_once_fill_no_memory():
    """There is a bound for them, too: after so many others one counts as new."""
    memo: Memo[int] = Memo(4000)
    for number in range(20000):
        memo.keep(b"%d" % number, number)
    memo.keep(b"0", 0)
    assert not memo.known


def test_large_keys_are_never_kept():
    """One would take the room of many."""
    memo: Memo[int] = Memo(1 << 20)
    for size in (MAX_KEY_SIZE, MAX_KEY_SIZE + 1):
        for _ in range(3):
            memo.keep(bytes(size), size)
    assert list(memo.known) == [bytes(MAX_KEY_SIZE)]


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
