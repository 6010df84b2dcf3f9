"""TLS at the embedded front end."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.ssl as ssl
import pytest
from gevent import socket
from http_rig import SENDER, Browser, serving, transceiver, wait_until

from greentx.edge import Edge, Handler
from greentx.edge.config import DEFAULT_SETTINGS
from greentx.errors import LocalProtocolError
from greentx.protocol.websocket.frames import FrameParser, build_frame

DATA = pathlib.Path(__file__).parent.parent / "data"
CERTIFICATE = str(DATA / "localhost.pem")
CLIENT = str(DATA / "client.pem")

# The client's.
ENCRYPTED_KEY = """
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAjbfD4ErUuM4gICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEECkfut5GSOqNmcCjN8onIM0EgZAe
IpUPHmbEd1ejk67Fl6Md30qEPb5vMAf8jITqgDNYt0SmGNTFahjGMoSHoXJrXymS
e3hMFzxYVlO7v7uppK5FcXidIyZbbIPxLzewjG80NK4Ig2ldZjnmtKEfOnQIxZZt
VXigKQAy2Du9bhd11kL9WMDjSntuCBMrV8ESJotvtnPxKHdzw+XViv4wBQSAoMk=
-----END ENCRYPTED PRIVATE KEY-----
"""


def client_context(certificate: str | None = None) -> Any:
    # gevent's: what create_default_context() makes is the standard library's.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATE)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


class TlsBrowser(Browser):
    """One that speaks TLS."""

    def __init__(self, edge: Edge, context: Any = None, **options: Any) -> None:
        super().__init__(edge, **options)
        plain = self.socket
        try:
            self.socket = (context or client_context()).wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise


def text_of_certificate(path: str) -> str:
    text = pathlib.Path(path).read_text()
    return text[text.index("-----BEGIN CERTIFICATE") : text.index("-----END CERTIFICATE")] + "-----END CERTIFICATE-----"


def fingerprint(path: str) -> str:
    """What Mongrel2 says of a certificate: one byte more than its SHA-1 has (probed)."""
    return hashlib.sha1(ssl.PEM_cert_to_DER_cert(text_of_certificate(path))).hexdigest().upper() + "00"


def answer(conn: Any, req: Any) -> None:
    """As much as the path says, or who asked."""
    if req.path[1:].isdecimal():
        conn.reply_http(req, bytes(int(req.path[1:])))
        return
    names = ("URL_SCHEME", "PEER_CERT_SHA1")
    conn.reply_http(req, " ".join(str(req.headers.get(name)) for name in names).encode() + b" " + req.body)


@contextlib.contextmanager
def served(edge: Edge, handler: Any = answer, **options: Any) -> Iterator[Edge]:
    with edge, transceiver(edge) as trans, serving(trans, handler, **options):
        yield edge


def make(**options: Any) -> Edge:
    return Edge({"/": Handler(SENDER)}, **{"certfile": CERTIFICATE, **options})


@pytest.fixture
def edge() -> Iterator[Edge]:
    """One that is started, with a handler."""
    with served(make()) as front:
        yield front


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_both_versions_are_spoken_and_handlers_are_told(edge, version):
    """Its url says so, too; and one request follows the other."""
    context = client_context()
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    context.set_alpn_protocols(["h2", "http/1.1"])
    assert edge.url == f"https://127.0.0.1:{edge.port}/"
    with TlsBrowser(edge, context) as browser:
        assert browser.socket.version() == version.replace("_", ".")
        assert browser.socket.selected_alpn_protocol() == "http/1.1"
        assert browser.get("/", method="POST", body=b"abc").body == b"https None abc"
        assert browser.get("/").body == b"https None "


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_older_versions_are_refused(edge):
    """As RFC 8996 asks for."""
    context = client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        TlsBrowser(edge, context)


def test_large_answers_reach_a_client_that_reads_late(edge):
    """Also where the system takes them in many parts, and the client sends meanwhile."""
    with TlsBrowser(edge, receive_buffer=4096, timeout=30) as browser:
        browser.ask("/6000000")
        browser.ask("/70000")
        browser.ask("/3", method="POST", body=bytes(100_000))
        assert [len(browser.receive().body) for _ in range(3)] == [6_000_000, 70_000, 3]


def test_large_bodies_come_whole(edge):
    """Records of any size are joined."""
    body = bytes(range(256)) * 2000
    with TlsBrowser(edge) as browser:
        browser.ask("/", method="POST", body=body)
        assert browser.receive().body == b"https None " + body


def test_a_client_that_is_told_the_end_can_tell_that_nothing_is_missing(edge):
    """By TLS's own sign, which a connection that was cut does not have."""
    with TlsBrowser(edge) as browser:
        assert browser.get("/", "Connection: close").status == 200
        browser.socket.suppress_ragged_eofs = False
        assert browser.socket.recv(1) == b""


def test_an_answer_that_is_cut_does_not_look_whole():
    """A client that does not read is dropped, without the sign of a regular end."""
    with served(make()) as edge, TlsBrowser(edge, receive_buffer=4096) as browser:
        browser.ask("/30000000")
        assert browser.socket.recv(1)
        edge.stop(0)
        browser.socket.suppress_ragged_eofs = False
        with pytest.raises(OSError):
            list(iter(lambda: browser.socket.recv(65536), b""))


@pytest.mark.parametrize("how", ["sign", "cut"])
def test_a_client_that_says_that_it_sends_nothing_more_is_answered(how):
    """By the sign of TLS, and by the end of the connection's half alone."""

    def slow(conn: Any, req: Any) -> None:
        gevent.sleep(0.1)
        conn.reply_http(req, bytes(1_000_000))

    with served(make(), slow) as edge, Browser(edge) as browser:
        # By hand, since Python's own sockets close both halves at once.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")

        def until_done(step: Any) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    if outgoing.pending:
                        browser.socket.sendall(outgoing.read())
                    data = browser.socket.recv(65536)
                    if data:
                        incoming.write(data)
                    else:
                        incoming.write_eof()

        until_done(tls.do_handshake)
        tls.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if how == "sign":
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
        browser.socket.sendall(outgoing.read())
        if how == "cut":
            browser.socket.shutdown(socket.SHUT_WR)
        received = 0
        with gevent.Timeout(20):
            while received < 1_000_000:
                received += len(until_done(lambda: tls.read(65536)))


def test_a_plain_request_is_told_that_this_port_speaks_tls(edge, caplog):
    """In a line of the log at DEBUG, and not as an error."""
    caplog.set_level(logging.DEBUG, "greentx.edge.front")
    with Browser(edge) as browser:
        answer = browser.get("/")
        assert (answer.status, b"HTTPS" in answer.body) == (400, True)
        assert browser.at_end()
    records = [record for record in caplog.records if record.name == "greentx.edge.front"]
    assert [(record.levelname, "does not speak TLS" in record.getMessage()) for record in records] == [("DEBUG", True)]


@pytest.mark.parametrize("said", [b"\0", b"\x16\x03\x01\x00\x05hello", b"\x80\x2e\x01\x03\x01", b""])
def test_what_is_not_tls_ends_the_connection(edge, said, caplog):
    """With at most a line at DEBUG; others are served."""
    caplog.set_level(logging.DEBUG, "greentx.edge.front")
    with Browser(edge) as browser:
        browser.send(said)
        browser.socket.shutdown(socket.SHUT_WR)
        # At most an alert.
        assert len(browser.read(100)) < 10
    wait_until(lambda: edge.connections == 0)
    assert {record.levelname for record in caplog.records if record.name == "greentx.edge.front"} <= {"DEBUG"}
    with TlsBrowser(edge) as browser:
        assert browser.get("/").status == 200


def test_a_client_that_does_not_finish_its_handshake_is_ended():
    """It has as long as for the head of a request."""
    with make(request_timeout=0.3) as edge, Browser(edge) as silent, Browser(edge) as begun:
        begun.send(b"\x16\x03\x01")
        wait_until(lambda: edge.connections == 2)
        assert silent.at_end()
        assert begun.at_end()


@pytest.mark.parametrize("verify", ["ssl.verify_required", "ssl.verify_optional"])
def test_certificates_of_clients_are_checked_and_told_as_mongrel2_tells_them(verify):
    """In all requests of a connection; one that nobody known has signed is refused in either case."""
    with served(make(settings={verify: 1, "ssl.ca_chain": CLIENT})) as edge:
        with TlsBrowser(edge, client_context(CLIENT)) as browser:
            for _ in range(2):
                assert browser.get("/").body == f"https {fingerprint(CLIENT)} ".encode()
        with pytest.raises(OSError), TlsBrowser(edge, client_context(CERTIFICATE)) as browser:
            # With TLS 1.3 a client learns it with the first answer.
            browser.get("/")
        if verify == "ssl.verify_optional":
            with TlsBrowser(edge) as browser:
                assert browser.get("/").body == b"https None "
        else:
            with pytest.raises(OSError), TlsBrowser(edge) as browser:
                browser.get("/")


def test_the_settings_that_every_mongrel2_is_started_with_are_accepted():
    """As a whole, since a program may hand the same ones to both front ends."""
    with served(make(settings=DEFAULT_SETTINGS)) as edge, TlsBrowser(edge) as browser:
        assert browser.get("/").status == 200


def test_a_context_is_used_as_it_is():
    """In place of files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with served(make(certfile=None, ssl_context=context)) as edge, TlsBrowser(edge) as browser:
        assert browser.socket.version() == "TLSv1.2"
        assert browser.get("/").body == b"https None "


def test_websockets_are_spoken():
    """Their messages tell of the certificate, too."""

    def echo(ws: Any) -> None:
        for message in ws:
            ws.send(f"{ws.request.headers['PEER_CERT_SHA1']} {message}")

    edge = make(settings={"ssl.verify_required": 1, "ssl.ca_chain": CLIENT})
    with served(edge, websocket=echo), TlsBrowser(edge, client_context(CLIENT)) as browser:
        fields = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
        browser.ask("/", *fields, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += browser.read(1)
        browser.send(build_frame(b"hello", 1, mask=b"abcd"))
        parser = FrameParser(require_mask=False)
        frames: list[Any] = []
        while not frames:
            frames = parser.feed(browser.socket.recv(65536))
        assert frames[0].payload == f"{fingerprint(CLIENT)} hello".encode()


def test_the_certificate_is_read_at_each_start(tmp_path):
    """A renewed one counts at the next one."""
    path = tmp_path / "server.pem"
    shutil.copy(CERTIFICATE, path)
    edge = make(certfile=path)
    context = client_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    seen = []
    for source in (CERTIFICATE, CLIENT):
        shutil.copy(source, path)
        with edge, TlsBrowser(edge, context) as browser:
            seen.append(hashlib.sha1(browser.socket.getpeercert(binary_form=True)).hexdigest().upper() + "00")
    assert seen == [fingerprint(CERTIFICATE), fingerprint(CLIENT)]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"certfile": None, "keyfile": "x"}, "keyfile 'x' needs a certfile"),
        ({"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "has a certificate of its own"),
        ({"certfile": None, "ssl_context": 1}, "not an ssl.SSLContext"),
        ({"settings": {"ssl.verify_required": 1}}, "needs ssl.ca_chain"),
        ({"settings": {"ssl_ciphers": "TLS-RSA-WITH-AES-128-CBC-SHA"}}, "give an ssl_context"),
        ({"settings": {"ssl.verify_optional": "yes"}}, "write 1 or 0"),
        ({"certfile": None, "settings": {"ssl.ca_chain": CLIENT}}, "ssl.ca_chain needs a certfile"),
    ],
)
def test_what_does_not_go_together_is_refused(options, why):
    """Before anything is opened."""
    with pytest.raises(LocalProtocolError, match=why):
        make(**options)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"certfile": "text"}, "text' cannot be used"),
        ({"keyfile": CLIENT}, "localhost.pem' cannot be used: it and its key, in '.*client.pem', are not"),
        ({"settings": {"ssl.verify_optional": 1, "ssl.ca_chain": "text"}}, "ssl.ca_chain is '.*text'"),
        ({"certfile": "encrypted"}, "the key is encrypted"),
    ],
)
def test_files_that_cannot_be_used_are_named(files, why, tmp_path, monkeypatch):
    """And nothing is left open."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("abc")
    (tmp_path / "encrypted").write_text(text_of_certificate(CLIENT) + ENCRYPTED_KEY)
    with pytest.raises(LocalProtocolError, match=why):
        make(**files).start()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make(certfile="nowhere").start()
