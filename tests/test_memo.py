"""The bounded memory of what was decoded."""

from __future__ import annotations

from greentx.memo import MAX_KEY_SIZE, MAX_MISSES, Memo


def test_what_comes_again_is_kept_and_what_came_once_is_not():
    """The first time it is only noted."""
    memo: Memo[int] = Memo(4)
    assert not memo.comes_again(b"a")
    assert not memo.comes_again(b"b")
    assert memo.comes_again(b"a")
    assert not memo.known  # whoever asks puts it in


def test_it_holds_no_more_than_its_limit():
    """Of what is known and of what came once."""
    memo: Memo[int] = Memo(4)
    for number in range(100):
        key = b"%d" % number
        if memo.comes_again(key) or memo.comes_again(key):
            memo.known[key] = number
        assert len(memo.known) <= 4 and len(memo._seen) <= 4
    assert memo.known[b"99"] == 99


def test_large_keys_are_never_kept():
    """One would take the room of many."""
    memo: Memo[int] = Memo(4)
    assert not any(memo.comes_again(bytes(MAX_KEY_SIZE + 1)) for _ in range(3))
    assert [memo.comes_again(bytes(MAX_KEY_SIZE)) for _ in range(2)] == [False, True]


def test_who_looks_in_vain_for_long_is_told_to_look_once_in_sixteen():
    """So that traffic that turns to be alike is noticed."""
    memo: Memo[int] = Memo(4)
    memo.misses = MAX_MISSES
    assert sum(memo.still_tried() for _ in range(160)) == 10
