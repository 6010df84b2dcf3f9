"""Bodies that Mongrel2 stores in files: which names are believed, what the application gets, when the file goes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from greentx import Request
from greentx.errors import LocalProtocolError
from greentx.handler.uploads import StoredBody, UploadInterrupted, Uploads

STORE = "/var/spool/up.XXXXXX"
FILE = "/var/spool/up.aZ09bY"
BOTH = {"x-mongrel2-upload-start": FILE, "x-mongrel2-upload-done": FILE}


def request(headers: dict[str, Any], body: bytes = b"", conn_id: str = "1") -> Request:
    return Request("abc", conn_id, "/", {"METHOD": "POST", "VERSION": "HTTP/1.1", **headers}, body)


def test_a_stored_body_ends_at_its_length(tmp_path: Path) -> None:
    """Mongrel2 appends what a client pipelined behind it."""
    path = tmp_path / "upload"
    path.write_bytes(b"one\ntwo\nGET / HTTP/1.1")
    stored = StoredBody(str(path), 8)
    with stored.open() as body:
        assert body.read(2) == b"on"
        assert list(body) == [b"e\n", b"two\n"]
        assert body.read() == b""
    with stored.open() as body:
        assert body.read() == b"one\ntwo\n"
    for length, count in ((None, 22), (100, 22)):
        other = StoredBody(str(path), length)
        with other.open() as body:
            assert len(body.read(200)) == count
        with other.open() as body:
            assert len(body.read()) == count
        other.give_away()


def test_a_stored_body_is_not_read_through_a_link(tmp_path: Path) -> None:
    """Nobody else's file is read by its name."""
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="link"):
        StoredBody(str(tmp_path / "link"), 8).open()


def test_the_file_goes_with_its_request(tmp_path: Path) -> None:
    """At the latest; it can be deleted earlier, moved away, or given to somebody else."""
    path = tmp_path / "up.abcdef"
    names = {"x-mongrel2-upload-start": str(path), "x-mongrel2-upload-done": str(path)}
    uploads = Uploads()
    for after in ("drop", "delete", "move", "give away"):
        path.write_bytes(b"body")
        assert not uploads.admit(request({"content-length": "4", "x-mongrel2-upload-start": str(path)}))
        end = request({"content-length": "4", **names})
        assert uploads.admit(end)
        assert end.body_file.read() == b"body" and end.stored is not None
        end.body_file.close()
        if after == "delete":
            end.stored.delete()
            assert not path.exists()
        elif after == "move":
            path.rename(tmp_path / "kept")
        elif after == "give away":
            end.stored.give_away()
        del end
        gc.collect()
        assert path.exists() == (after == "give away")
    assert (tmp_path / "kept").read_bytes() == b"body"


def test_a_file_that_cannot_be_deleted_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder, for one; nothing else comes of it."""
    StoredBody(str(tmp_path), None).delete()
    assert "could not be deleted" in caplog.text


def test_a_body_that_came_with_its_request_is_a_file_too() -> None:
    """The application need not know which it was."""
    one = request({}, b"inline")
    assert one.body_file.read() == b"inline"
    assert one.body_file is one.body_file


@pytest.mark.parametrize("template", ["up.XXXXXX", "/var/spool/up", "/var/spool/up.XXXXX", ""])
def test_a_store_has_an_absolute_template(template: str) -> None:
    """As mkstemp(3) wants it."""
    with pytest.raises(LocalProtocolError, match="XXXXXX"):
        Uploads(template)


@pytest.mark.parametrize(
    ("headers", "body", "found"),
    [
        ({"content-length": "9", "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"transfer-encoding": "chunked", "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"content-length": "9", "x-mongrel2-upload-start": FILE, "x-mongrel2-upload-done": FILE}, b"", FILE),
        ({"content-length": "9", "x-mongrel2-upload-start": FILE}, b"123456789", None),
        ({"content-length": "0", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": [], "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": " +09x", "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"content-length": ["9", "0"], "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"content-length": "2147483647", "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"content-length": "2147483648", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "4294967297", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "9" * 5000, "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": ["0", "9"], "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "-9", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "abc", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "0x9", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "0", "transfer-encoding": "chunked", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"transfer-encoding": ["chunked", "x"], "x-mongrel2-upload-start": FILE}, b"", FILE),
        ({"transfer-encoding": ["x", "chunked"], "x-mongrel2-upload-start": FILE}, b"", None),
        ({"transfer-encoding": "Chunked", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"transfer-encoding": "chunked ", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"transfer-encoding": "x", "x-mongrel2-upload-start": FILE}, b"", None),
        ({"x-mongrel2-upload-start": FILE}, b"", None),
        ({"content-length": "9", "x-mongrel2-upload-start": "/etc/passwd"}, b"", None),
        ({"content-length": "9", "x-mongrel2-upload-start": "/var/spool/up.aZ09bY/../x"}, b"", None),
        ({"content-length": "9", "x-mongrel2-upload-start": "/var/spool/up.aZ09b/"}, b"", None),
        ({"content-length": "9", "x-mongrel2-upload-start": FILE + "\n"}, b"", None),
        ({"content-length": "9", "x-mongrel2-upload-start": [FILE, FILE]}, b"", None),
        ({"content-length": "9"}, b"", None),
    ],
)
def test_an_upload_is_known_by_a_body_that_did_not_come(
    headers: dict[str, Any], body: bytes, found: str | None
) -> None:
    """And by a name of the own store. What is not one loses the headers, which were its client's."""
    uploads = Uploads(STORE)
    one = request(headers, body)
    assert uploads.admit(one) == (found is None)
    assert [name for _, name in uploads.begun.values()] == ([] if found is None else [found])
    assert ("x-mongrel2-upload-start" in one.headers) == (found is not None)


def test_the_end_of_an_upload_names_the_same_file() -> None:
    """Both headers do; anything else in its place is an error, and both requests are told."""
    start = {"content-length": "9", "x-mongrel2-upload-start": FILE}
    for wrong in (
        request(BOTH, b"x"),
        request({**BOTH, "x-mongrel2-upload-done": FILE[:-1] + "x"}),
        request({"x-mongrel2-upload-start": FILE}),
        request({}),
    ):
        uploads = Uploads(STORE)
        begun = request(start)
        assert not uploads.admit(begun)
        with pytest.raises(UploadInterrupted, match="is not the end") as caught:
            uploads.admit(wrong)
        assert (caught.value.begun, caught.value.request) == (begun, wrong)
        assert not uploads.begun
    uploads = Uploads(STORE)
    assert not uploads.admit(request(start))
    other = request({}, conn_id="2")
    assert uploads.admit(other) and other.stored is None  # of another connection
    end = request(BOTH)
    assert uploads.admit(end)
    assert end.stored is not None and end.stored.path == FILE
    assert end.headers["x-mongrel2-upload-done"] == FILE


def test_a_piece_of_a_stream_begins_no_upload() -> None:
    """With ``upload.stream`` nothing is stored."""
    uploads = Uploads(STORE)
    assert uploads.admit(request({"content-length": "9", **BOTH, "UPLOAD_STREAM": "0"}))


def test_a_store_says_where_the_files_are(caplog: pytest.LogCaptureFixture) -> None:
    """The server may name them as it sees them, in a chroot or relative to its folder; other names are not believed."""
    uploads = Uploads(STORE)
    for number, name in enumerate(["/in/chroot/up.aZ09bY", "up.aZ09bY"]):
        names = {"x-mongrel2-upload-start": name}
        assert not uploads.admit(request({"content-length": "9", **names}, conn_id=str(number)))
        end = request({**names, "x-mongrel2-upload-done": name}, conn_id=str(number))
        assert uploads.admit(end)
        assert end.stored is not None and end.stored.path == FILE
    assert uploads.admit(request({"content-length": "9", "x-mongrel2-upload-start": "/var/spool/other.aZ09bY"}))
    assert "upload_store does not name" in caplog.text


def test_what_has_not_ended_is_forgotten_with_its_connection_or_at_the_end() -> None:
    """The first one silently; at the end the requests come back, to be answered."""
    uploads = Uploads()
    for number in ("1", "2", "3"):
        uploads.admit(request({"content-length": "9", "x-mongrel2-upload-start": FILE}, conn_id=number))
    uploads.forget("2")
    assert sorted(one.conn_id for one in uploads.end()) == ["1", "3"]
    assert not uploads.begun
