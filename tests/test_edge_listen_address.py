"""Where a front end may be told to listen."""

from __future__ import annotations

import os

import pytest

from greentx.edge.listen_address import ListenAddress
from greentx.errors import LocalProtocolError


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("127.0.0.1:8000", ListenAddress(host="127.0.0.1", port=8000), "127.0.0.1:8000"),
        ("localhost:0", ListenAddress(host="localhost"), "localhost:0"),
        (":8000", ListenAddress(host="", port=8000), ":8000"),
        ("8000", ListenAddress(host="::", port=8000), "[::]:8000"),
        ("[::1]:8000", ListenAddress(host="::1", port=8000), "[::1]:8000"),
        ("[::]:65535", ListenAddress(host="::", port=65535), "[::]:65535"),
        ("unix:/run/a,b.sock", ListenAddress(path="/run/a,b.sock"), "unix:/run/a,b.sock"),
        ("unix:///run/a.sock,mode=0660", ListenAddress(path="/run/a.sock", mode=0o660), "unix:/run/a.sock"),
        ("unix:@name", ListenAddress(path="@name"), "unix:@name"),
        ("unix:a.sock", ListenAddress(path=os.path.abspath("a.sock")), f"unix:{os.path.abspath('a.sock')}"),
        ("fd://3", ListenAddress(descriptor=3), "fd://3"),
    ],
)
def test_an_address_is_read_and_shown(text, address, shown):
    """What is shown means the same again, but for the mode of a file."""
    assert ListenAddress.parse(text) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not an address to listen on"),
        ("localhost", "write localhost:8000"),
        ("[::1]", r"write \[::1\]:8000"),
        ("::1:8000", r"in two ways: write \[::1?\]:"),
        ("[nonsense]:80", "is not an address to listen on"),
        ("a:65536", "a port is 0 to 65535"),
        ("a:", "is not an address to listen on"),
        ("a:-1", "is not an address to listen on"),
        ("a:٣", "is not an address to listen on"),
        ("http://localhost:8000", "is not an address to listen on"),
        ("/run/a.sock", "unix:/path"),
        ("unix:", "has no path"),
        ("unix:/a\0b", "has no path"),
        (f"unix:/{'x' * 107}", "108 bytes, limit 107"),
        ("unix:@name,mode=600", "no file"),
        ("fd://", "no number of a descriptor"),
        ("fd://x", "no number of a descriptor"),
        ("fd://99999999", "no number of a descriptor"),
    ],
)
def test_what_is_none_is_refused_with_what_to_write(text, why):
    """As a ValueError, too."""
    with pytest.raises(LocalProtocolError, match=why):
        ListenAddress.parse(text)
