"""Which front end a program gets."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from greentx.edge import EdgeProcess, Mongrel2
from greentx.edge.choice import choose, make_front_end
from greentx.errors import FrontEndNotFound, LocalProtocolError
from greentx.wsgi import WSGIServer


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with nothing in it, for a test to put something there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_mongrel2_is_taken_where_it_is_installed(path):
    """Nothing of it is run for that."""
    (path / "mongrel2").symlink_to("/bin/false")
    assert choose("auto") == "mongrel2"
    assert isinstance(make_front_end("auto"), Mongrel2)
    assert choose("edge") == "edge"


def test_the_embedded_one_is_taken_where_mongrel2_is_missing(path):
    """What is asked for by name is given, or is missing."""
    assert choose("auto") == "edge"
    assert isinstance(make_front_end("auto"), EdgeProcess)
    assert choose("mongrel2") == "mongrel2"


def test_where_there_is_neither_the_error_says_what_to_install(path, monkeypatch):
    """Both, in one line."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FrontEndNotFound) as info:
        choose("auto")
    assert str(info.value) == (
        "there is no front end: install the embedded one (pip install greentx[edge]), "
        "or mongrel2 (Debian, Ubuntu: apt-get install mongrel2-core)"
    )


def test_another_name_is_refused():
    """With those that there are."""
    with pytest.raises(LocalProtocolError, match="'nginx' is unknown: write 'auto', 'mongrel2' or 'edge'"):
        make_front_end("nginx")
    with pytest.raises(ValueError, match="'nginx' is unknown"):
        WSGIServer(("127.0.0.1", 0), front_end="nginx")


@pytest.mark.parametrize("listener", ["mongrel2://a@localhost", ("a", "ipc:///x", "ipc:///y")])
def test_none_is_chosen_where_it_is_not_ours(listener):
    """A Mongrel2 that runs is what it is."""
    assert WSGIServer(listener).front_end is None
    with pytest.raises(ValueError, match="front_end='edge' is about one of our own"):
        WSGIServer(listener, front_end="edge")
