"""How many file descriptors a process of the embedded front end may have."""

from __future__ import annotations

import resource

import pytest

from greentx.edge.front.descriptors import make_room

NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "warned"),
    [
        (2000, 5000, [], False),
        (NO_LIMIT, NO_LIMIT, [], False),
        (1024, 5000, [(1256, 5000)], False),
        (1024, NO_LIMIT, [(1256, NO_LIMIT)], False),
        (1024, 1100, [(1100, 1100)], True),
    ],
)
def test_the_limit_is_raised_to_what_the_connections_need(soft, hard, raised, warned, monkeypatch, caplog):
    """Up to the hard one; where that is too small, one line says so, and what to do."""
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    make_room(1000)
    assert limits == raised
    assert [one.levelname for one in caplog.records] == ["WARNING"] * warned
    assert ("max_connections is 1000, and this process may have 1100 descriptors" in caplog.text) == warned


def test_a_system_that_allows_less_than_it_says_is_told_of(monkeypatch, caplog):
    """As macOS does."""

    def refuse(*_: object) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, NO_LIMIT))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    make_room(1000)
    assert "may have 256 descriptors" in caplog.text
