"""The files that the embedded front end stores bodies in, and what its settings say of them."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import gevent
import pytest

from greentx.edge.front.events import START, Head
from greentx.edge.front.limits import UploadSettings
from greentx.edge.front.sinks import StoredSink
from greentx.edge.front.streams import Piece
from greentx.edge.front.uploads import UploadFile
from greentx.errors import LocalProtocolError

# Mongrel2 and handlers know no larger ones.
LARGEST = 2**31 - 1


@pytest.fixture
def template(tmp_path: Path) -> str:
    return f"{tmp_path}/up.XXXXXX"


def test_a_file_has_a_name_as_mkstemp_makes_it(template):
    """Letters and digits in the place of the six X, another one each time."""
    files = [UploadFile(template, 0o600) for _ in range(2)]
    assert files[0].name != files[1].name
    for file in files:
        assert re.fullmatch(re.escape(template[:-6]) + "[A-Za-z0-9]{6}", file.name)
        file.remove()
    assert not os.listdir(os.path.dirname(template))


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o777])
def test_a_file_has_its_mode_whatever_the_umask_is(template, mode):
    """As with Mongrel2."""
    before = os.umask(0o077)
    try:
        file = UploadFile(template, mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(file.name).st_mode) == mode
    file.remove()


def test_a_finished_file_has_all_that_was_written_and_stays(template):
    """In pieces of any size."""
    pieces = [b"a", b"", b"b" * 100_000, b"c" * 65_536, b"d"]
    file = UploadFile(template, 0o600)
    for piece in pieces:
        file.write(piece)
    file.finish()
    assert Path(file.name).read_bytes() == b"".join(pieces)


def test_a_removed_file_is_gone_also_where_somebody_moved_or_deleted_it(template):
    """A second time nothing is done."""
    file = UploadFile(template, 0o600)
    file.write(b"a" * 70_000)
    os.unlink(file.name)
    file.remove()
    Path(file.name).write_bytes(b"another's")
    file.remove()
    assert Path(file.name).read_bytes() == b"another's"


def test_a_file_is_removed_while_it_is_written(template):
    """Whoever writes is not disturbed, and leaves nothing."""
    file = UploadFile(template, 0o600)
    file.write(b"a")
    writer = gevent.spawn(file.write, b"b" * 100_000)
    gevent.sleep(0)
    file.remove()
    writer.get()
    file.write(b"c" * 100_000)
    file.finish()
    assert not os.path.exists(file.name)


def test_a_greenlet_that_is_killed_while_it_makes_a_file_leaves_none(template):
    """Nobody would know its name."""
    maker = gevent.spawn(UploadFile, template, 0o600)
    gevent.sleep(0)  # a thread makes it; the greenlet waits
    maker.kill()
    assert maker.ready()
    assert not os.listdir(os.path.dirname(template))


def test_a_folder_that_is_not_there_is_an_error():
    """Which names the file."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        UploadFile("/nowhere/up.XXXXXX", 0o600)


def test_a_disk_that_is_full_is_an_error(template, monkeypatch):
    """Wherever the bytes wait; the file can be removed then."""

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    small, large = (UploadFile(template, 0o600) for _ in range(2))
    small.write(b"a")
    with pytest.raises(OSError, match="No space left"):
        small.finish()
    with pytest.raises(OSError, match="No space left"):
        large.write(b"a" * 100_000)
    small.remove()
    large.remove()
    assert not os.listdir(os.path.dirname(template))


class Stopped:
    """A request whose last message waits for a handler when everything ends."""

    def hand_over(self, body: bytes) -> None:
        raise AssertionError("it is too large")

    def announce(self, body: bytes, *, streamed: bool) -> bool:
        return not streamed

    def hand_piece(self, piece: Piece) -> bool:
        raise AssertionError("it is stored")

    def conclude(self) -> bool:
        raise gevent.GreenletExit

    def fail(self, status: int, reason: str) -> None:
        raise AssertionError(reason)


def test_a_body_that_no_handler_was_told_the_end_of_is_deleted(template):
    """Also where the greenlet is killed that waits for one."""
    request = Head(b"POST", b"/", b"HTTP/1.1", [], content_length=3)
    sink = StoredSink(Stopped(), lambda size: True, request, UploadSettings(template), 2)
    sink.pause()
    assert [name for name, _ in request.headers] == [START]
    assert len(os.listdir(os.path.dirname(template))) == 1
    sink.add(b"abc")
    with pytest.raises(gevent.GreenletExit):
        sink.end()
    assert not os.listdir(os.path.dirname(template))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, UploadSettings()),
        ({"upload.temp_store": "/a/XXXXXX"}, UploadSettings("/a/XXXXXX", largest=LARGEST)),
        (
            {"upload.temp_store": "up.XXXXXX", "upload.temp_store_mode": "0644"},
            UploadSettings("up.XXXXXX", 0o644, largest=LARGEST),
        ),
        ({"upload.temp_store_mode": "420"}, UploadSettings(mode=0o644)),
        ({"upload.temp_store_mode": 420}, UploadSettings(mode=0o644)),
        ({"upload.temp_store_mode": "0x1a4"}, UploadSettings(mode=0o644)),
        ({"upload.stream": 1}, UploadSettings(stream=True, largest=LARGEST)),
        ({"upload.stream": True}, UploadSettings(stream=True, largest=LARGEST)),
        ({"upload.stream": "1"}, UploadSettings(stream=True, largest=LARGEST)),
        ({"upload.stream": 0, "limits.min_ping": 3}, UploadSettings()),
    ],
)
def test_settings_are_read_as_mongrel2_reads_them(settings, expected):
    """A mode in octal begins with 0."""
    assert UploadSettings.of(settings) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("upload.temp_store", ""),
        ("upload.temp_store", "/tmp/upload"),
        ("upload.temp_store", "/tmp/XXXXXX/upload"),
        ("upload.temp_store", "/tmp/\nXXXXXX"),
        ("upload.temp_store", 1),
        ("upload.temp_store_mode", "rw"),
        ("upload.temp_store_mode", "0"),
        ("upload.temp_store_mode", "644"),
        ("upload.temp_store_mode", "01777"),
        ("upload.stream", 2),
        ("upload.stream", "yes"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(name, value):
    """The message names it."""
    with pytest.raises(LocalProtocolError, match=name):
        UploadSettings.of({name: value})


def test_bodies_have_a_bound_where_they_are_stored_or_streamed():
    """Where neither is done there is nothing to bound."""
    assert UploadSettings.of({"upload.stream": 1}, 70_000).largest == 70_000
    for settings, largest in (({}, 1), ({"upload.stream": 1}, 0), ({"upload.stream": 1}, LARGEST + 1)):
        with pytest.raises(LocalProtocolError, match="bodies"):
            UploadSettings.of(settings, largest)
