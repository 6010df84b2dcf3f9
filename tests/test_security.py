"""Who may connect: networks and keys, without a peer."""

from __future__ import annotations

import ipaddress
import os
import stat

import pytest
import zmq
from zmq.auth import load_certificate

from greentx.errors import LocalProtocolError, TransportError
from greentx.transport.endpoints import connect_endpoint
from greentx.transport.keys import load_keys, make_key_files, public_key, public_keys
from greentx.transport.security import PRIVATE_NETWORKS, Access, Networks


@pytest.mark.parametrize(
    ("address", "is_private"),
    [
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("10.0.0.1", True),
        ("172.16.0.1", True),
        ("172.31.255.255", True),
        ("192.168.1.1", True),
        ("169.254.1.1", True),
        ("::1", True),
        ("fd00::1", True),
        ("fe80::1%eth0", True),
        ("::ffff:10.1.2.3", True),
        ("172.15.255.255", False),
        ("172.32.0.0", False),
        ("192.169.0.1", False),
        ("100.64.0.1", False),
        ("8.8.8.8", False),
        ("0.0.0.0", False),
        ("2001:db8::1", False),
        ("::ffff:8.8.8.8", False),
        ("::", False),
        ("localhost", False),
        ("", False),
        ("1000:0:0:1", False),
    ],
)
def test_private_are_loopback_private_and_link_local_addresses(address, is_private):
    """In either family, also where IPv4 comes in the form of IPv6."""
    assert (address in Networks(PRIVATE_NETWORKS, "x")) is is_private


@pytest.mark.parametrize("given", ["192.0.2.0/24", ["192.0.2.7", "::1"], ipaddress.ip_network("192.0.2.0/30")])
def test_networks_are_given_as_text_or_as_objects(given):
    """One or several; a single address is a network of one."""
    assert "192.0.2.7" in Networks(given, "x") or given == ipaddress.ip_network("192.0.2.0/30")
    assert "192.0.3.7" not in Networks(given, "x")


@pytest.mark.parametrize("zone", ["lo]:45681;[::ffff:127.0.0.2", "a b", "]", ";"])
def test_a_zone_that_is_no_name_is_in_no_network_and_no_address(zone):
    """ZeroMQ would read a second address in it."""
    host = f"::ffff:127.0.0.5%{zone}"
    assert host not in Networks("127.0.0.5/32", "x")
    with pytest.raises(LocalProtocolError):
        connect_endpoint((host, 9999))
    assert connect_endpoint(("fe80::1%eth0", 9999)) == "tcp://[fe80::1%eth0]:9999"


def test_no_network_is_nobody():
    """An empty list is not the default."""
    assert "127.0.0.1" not in Networks([], "x")


@pytest.mark.parametrize("given", ["10.0.0.1/8", "localhost", ["10.0.0.0/8", "x"], 5, None, b"10.0.0.0/8", [[]]])
def test_what_is_not_a_network_is_an_error_that_names_the_option(given):
    """Host bits behind the mask, too: nobody can say what was meant."""
    with pytest.raises(LocalProtocolError, match=r"an_option.*'10\.0\.0\.0/8'"):
        Networks(given, "an_option")


def test_refusals_are_counted_and_logged_ten_times_a_minute(caplog):
    """Once for each address: a peer that is refused comes back at once, and another one may have many addresses."""
    access = Access("this", networks=Networks("10.0.0.0/8", "x"), options=("an_option=", ""))
    for address in ("192.0.2.1", "192.0.2.1", *(f"192.0.2.{number}" for number in range(2, 30))):
        assert not access.admits(address)
    assert access.admits("10.1.1.1")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 10
    assert lines[0] == "this: 192.0.2.1 is refused: it is not in an_option= (10.0.0.0/8) (refused so far: 1)"
    assert lines[1].startswith("this: 192.0.2.2 ")
    assert access.refused == 30


# -- keys --------------------------------------------------------------------------------------------------------------


def test_key_files_are_zmq_s_and_the_secret_is_ours_alone(tmp_path):
    """Whatever the umask is; zmq.auth reads them."""
    old = os.umask(0)
    try:
        public_file, secret_file = make_key_files(tmp_path, "api")
    finally:
        os.umask(old)
    assert (public_file.name, secret_file.name) == ("api.key", "api.key_secret")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (public_file, secret_file)] == [0o644, 0o600]
    public, secret = load_certificate(secret_file)
    assert secret is not None
    assert zmq.curve_public(secret) == public
    assert load_certificate(public_file) == (public, None)
    keys = load_keys(secret_file)
    assert (keys.public, keys.secret) == (public, secret)
    assert secret.decode() not in repr(keys)
    assert secret not in public_file.read_bytes()


def test_key_files_are_never_replaced(tmp_path):
    """Either of them: others rely on it."""
    public_file, secret_file = make_key_files(tmp_path, "api")
    before = secret_file.read_bytes()
    with pytest.raises(FileExistsError, match=r"api\.key is there already"):
        make_key_files(tmp_path, "api")
    public_file.unlink()
    with pytest.raises(FileExistsError, match=r"api\.key_secret is there already"):
        make_key_files(tmp_path, "api")
    assert secret_file.read_bytes() == before
    assert not public_file.exists()


@pytest.mark.parametrize("name", ["", "a/b", "\0"])
def test_the_name_of_a_key_is_that_of_a_file(tmp_path, name):
    """No path."""
    with pytest.raises(LocalProtocolError, match="cannot be the name of a file"):
        make_key_files(tmp_path, name)


def test_a_secret_that_others_may_read_is_a_warning(tmp_path, caplog):
    """It names the file, and the option that names it."""
    _, secret_file = make_key_files(tmp_path, "api")
    load_keys(secret_file)
    assert not caplog.records
    secret_file.chmod(0o640)
    load_keys(secret_file)
    assert "curve_secret" in caplog.text and "may be read by other users: chmod 600" in caplog.text


def test_public_keys_are_those_of_a_folder_of_files_or_as_they_are(tmp_path):
    """Secret files in the folder are nobody's to let in twice."""
    a, b = (make_key_files(tmp_path, name)[0] for name in "ab")
    keys = {load_certificate(path)[0] for path in (a, b)}
    assert public_keys(tmp_path) == public_keys([a, str(b)]) == public_keys(list(keys)) == keys
    assert public_keys(a) == {public_key(a)} == {public_key(str(a))}


def test_what_has_no_key_is_an_error_that_names_the_option(tmp_path):
    """A file that is not there, one of another kind, a public one for a secret, an empty folder, a key cut short."""
    public_file, _ = make_key_files(tmp_path, "api")
    key = public_key(public_file)
    other, empty = tmp_path / "other", tmp_path / "empty"
    other.write_text("hello")
    empty.mkdir()
    for read, given in [
        (load_keys, tmp_path / "nothing"),
        (load_keys, other),
        (load_keys, public_file),
        (public_key, tmp_path / "nothing"),
        (public_key, other),
        (public_key, key[:-1]),
        (public_key, b"~" * 40),
        (public_key, b"#" * 40),
        (public_key, b"\xff" * 40),
        (public_keys, empty),
        (public_keys, []),
    ]:
        with pytest.raises(LocalProtocolError, match="an_option"):
            read(given, "an_option")


def test_a_libzmq_without_curve_is_told_by_what_to_do(tmp_path, monkeypatch):
    """Wherever a key is read or made."""
    _, secret_file = make_key_files(tmp_path, "api")
    monkeypatch.setattr(zmq, "has", lambda capability: capability != "curve")
    for attempt in (
        lambda: load_keys(secret_file),
        lambda: public_key(b"x" * 40),
        lambda: public_keys(tmp_path),
        lambda: make_key_files(tmp_path, "b"),
    ):
        with pytest.raises(TransportError, match="built without CURVE: install pyzmq from its wheels"):
            attempt()
