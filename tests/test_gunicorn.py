"""What the worker class tells gunicorn, without a front end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger

from greentx.cli import build_parser
from greentx.gunicorn import CONNECT_VARIABLE, Handler, Worker
from greentx.gunicorn.plan import make_plan
from greentx.gunicorn.settings import parse_settings
from greentx.protocol.request import Request


def make(monkeypatch, *, url=None, **settings) -> Worker:
    """Return a worker with *settings* that was not started."""
    monkeypatch.delenv(CONNECT_VARIABLE, raising=False)
    if url is not None:
        monkeypatch.setenv(CONNECT_VARIABLE, url)
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return Worker(1, 1, [], None, 30, cfg, Logger(cfg))


@pytest.mark.parametrize("url", [None, "", "  ", "tcp://127.0.0.1:9999", "mongrel2://a_b@host mongrel2://"])
def test_a_worker_without_an_address_stops_gunicorn(monkeypatch, url, capfd):
    """The exit code is the one after which gunicorn starts no further worker."""
    worker = make(monkeypatch, url=url)
    with pytest.raises(SystemExit) as caught:
        worker.init_process()
    assert caught.value.code == Arbiter.WORKER_BOOT_ERROR
    worker.tmp.close()


@pytest.mark.parametrize("size", ["x", "-1", "1.5", "16M"])
def test_a_size_that_is_none_stops_gunicorn(monkeypatch, size, capfd):
    """The line names the variable."""
    worker = make(monkeypatch, url="mongrel2://a@host", raw_env=[f"GREENTX_MAX_MESSAGE_SIZE={size}"])
    with pytest.raises(SystemExit) as caught:
        worker.init_process()
    assert caught.value.code == Arbiter.WORKER_BOOT_ERROR
    assert f"GREENTX_MAX_MESSAGE_SIZE is '{size}': use a whole number of bytes, 0 or more" in capfd.readouterr().err
    worker.tmp.close()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GREENTX_CONTROL", "9997", "has no host"),
        ("GREENTX_CONTROL_ALLOW", "10.0.0.0/8", "there is no control socket to be protected"),
    ],
)
def test_a_control_socket_that_cannot_be_stops_gunicorn(monkeypatch, name, value, said, capfd):
    """No worker is started again and again."""
    worker = make(monkeypatch, url="mongrel2://a@host", raw_env=[f"{name}={value}"])
    with pytest.raises(SystemExit) as caught:
        worker.init_process()
    assert caught.value.code == Arbiter.WORKER_BOOT_ERROR
    assert said in capfd.readouterr().err
    worker.tmp.close()


def test_origins_that_no_browser_sends_stop_gunicorn(monkeypatch, capfd):
    """The line says which one, and what to write."""
    worker = make(monkeypatch, url="mongrel2://a@host", raw_env=["GREENTX_ORIGINS=same example.org"])
    with pytest.raises(SystemExit) as caught:
        worker.init_process()
    assert caught.value.code == Arbiter.WORKER_BOOT_ERROR
    assert "origin 'example.org' is not what a browser sends" in capfd.readouterr().err
    worker.tmp.close()


def test_the_configuration_comes_before_the_environment(monkeypatch, capfd):
    """What raw_env says is what gunicorn's own settings say."""
    worker = make(monkeypatch, url="the environment's", raw_env=[f"{CONNECT_VARIABLE}=the-file's"])
    with pytest.raises(SystemExit):
        worker.init_process()
    error = capfd.readouterr().err
    assert "the-file's" in error
    assert "the environment's" not in error
    worker.tmp.close()
    worker = make(monkeypatch, url="the-environment's")
    with pytest.raises(SystemExit):
        worker.init_process()
    assert "the-environment's" in capfd.readouterr().err
    worker.tmp.close()


@pytest.mark.parametrize("value", ["relay.example:9996", "ipc:///run/relay", "10.0.0.5:9996"])
def test_a_relay_elsewhere_is_said_by_its_address(value):
    """Where its Nodes connect."""
    assert parse_settings({"relay": ("greentx_relay", value)}) == {"relay": value}


@pytest.mark.parametrize("value", [True, 1, "yes", "*:9996", "relay.example", "host:0"])
def test_what_is_no_address_of_a_relay_is_refused(value):
    """The line names the setting; "yes" was one before there was a relay of gunicorn's own."""
    with pytest.raises(ValueError, match=r"greentx_relay is .*: .*(HOST:PORT|host:port|port|host)"):
        parse_settings({"relay": ("greentx_relay", value)})


def plan(**settings):
    """Return what is to be done where a configuration says these."""
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return make_plan(cfg)


def test_what_the_relay_is_told(monkeypatch):
    """All that belongs to WebSockets and to Mongrel2; workers have the bounds and the store, too."""
    monkeypatch.delenv(CONNECT_VARIABLE, raising=False)
    said = {
        "CONNECT": "mongrel2://a@one mongrel2://b@two",
        "ORIGINS": "same, none",
        "MAX_MESSAGE_SIZE": "0",
        "MAX_QUEUE_BYTES": "1000",
        "MAX_PENDING_BYTES": "2000",
        "PING_TIMEOUT": "0",
        "RETRY": "GET, PUT",
        "UPLOAD_STORE": "/x/XXXXXX",
        "CONTROL": "127.0.0.1:9997",
        "CONTROL_ALLOW": "10.0.0.0/8 ::1",
    }
    made = plan(raw_env=[f"GREENTX_{name}={value}" for name, value in said.items()])
    assert list(made.words) == [
        "--connect=mongrel2://a@one",
        "--connect=mongrel2://b@two",
        "--max-message-size=0",
        "--origins=same,none",
        "--ping-timeout=0",
        "--retry=GET,PUT",
        "--max-pending-bytes=2000",
        "--max-queue-bytes=1000",
        "--upload-store=/x/XXXXXX",
        "--control=127.0.0.1:9997",
        "--control-allow=10.0.0.0/8",
        "--control-allow=::1",
    ]
    assert made.node == {
        "max_queue_bytes": 1000,
        "max_pending_bytes": 2000,
        "upload_store": "/x/XXXXXX",
        "rep_port": False,
    }
    # What they mean there is what was meant here.
    arguments = build_parser().parse_args(["relay", *made.words])
    arguments.fill_in(arguments, {})
    assert arguments.retry == ["GET", "PUT"]
    assert arguments.max_message_size == 0
    assert (made.serves, made.relay) == ("mongrel2://a@one, mongrel2://b@two", "")


def test_the_relay_may_have_a_front_end_of_its_own(monkeypatch):
    """In the place of a Mongrel2 that runs; what does not go together is refused, by its names."""
    monkeypatch.delenv(CONNECT_VARIABLE, raising=False)
    made = plan(raw_env=["GREENTX_BIND=127.0.0.1:8000", "GREENTX_FRONT_END=edge"])
    assert list(made.words) == ["--bind=127.0.0.1:8000", "--front-end=edge"]
    assert made.serves == "front end at 127.0.0.1:8000"
    url = "GREENTX_CONNECT=mongrel2://a@one"
    for said, message in (
        (["GREENTX_BIND=:80", url], "GREENTX_BIND and GREENTX_CONNECT exclude each other"),
        (["GREENTX_FRONT_END=edge", url], "GREENTX_FRONT_END is about a front end of our own"),
        (["GREENTX_FRONT_END=nginx", "GREENTX_BIND=:80"], "GREENTX_FRONT_END is 'nginx': .* is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(raw_env=said)


def test_what_belongs_to_a_relay_elsewhere_is_not_said_here(monkeypatch):
    """It would be without effect."""
    monkeypatch.delenv(CONNECT_VARIABLE, raising=False)
    relay = "GREENTX_RELAY=relay.example:9996"
    made = plan(raw_env=[relay, "GREENTX_UPLOAD_STORE=/x/XXXXXX", "GREENTX_CONTROL=127.0.0.1:0"])
    assert (made.relay, made.words) == ("relay.example:9996", ())
    assert made.node == {"upload_store": "/x/XXXXXX", "rep_ip": "127.0.0.1", "rep_port": 0}
    for name, value in (("CONNECT", "mongrel2://a@b"), ("ORIGINS", "same"), ("PING_TIMEOUT", "5"), ("RETRY", "GET")):
        with pytest.raises(ValueError, match=f"GREENTX_{name} belongs to the relay at relay.example:9996"):
            plan(raw_env=[relay, f"GREENTX_{name}={value}"])


def test_true_is_no_number_of_seconds():
    """Nor of bytes: whoever writes it means something else."""
    for name in ("ping_timeout", "max_message_size", "max_queue_bytes"):
        with pytest.raises(ValueError, match=f"greentx_{name} is True"):
            parse_settings({name: (f"greentx_{name}", True)})


@pytest.mark.parametrize("kind", [str, str.encode])
def test_the_access_log_gets_the_headers_as_the_client_sent_them(kind):
    """Repeated, empty and odd ones, without those of Mongrel2, and without a message being made of them."""
    sent = {
        "METHOD": "GET",
        "PATH": "/",
        "QUERY": "a=b",
        "host": "localhost",
        "x-many": ["1", "2 ", "1"],
        "x-empty": "",
        "x-none": [],
        "x-latin": "caf\xe9 \x80",
        "x-folded": "a\r\n b: c",
        "123:odd name": "\t spaces ",
    }
    raw = {
        _coded(name, kind): [_coded(one, kind) for one in value] if isinstance(value, list) else _coded(value, kind)
        for name, value in sent.items()
    }
    logged = []
    server = SimpleNamespace(
        log=SimpleNamespace(access=lambda response, headers, environ, duration: logged.append(headers)),
        worker=SimpleNamespace(count_request=lambda: None),
    )

    def handler_of(cls) -> Handler:
        handler: Handler = cls(SimpleNamespace(request=Request("abc", "1", "/", raw, b"")), ("", 0), server)
        handler.environ = {}
        return handler

    class WithoutMessage(Handler):
        @property
        def headers(self):
            raise AssertionError("a message was made of the headers")

    handler_of(WithoutMessage).log_request()
    assert logged == [list(handler_of(Handler).headers.items())]
    assert [value for name, value in logged[0] if name == "x-many"] == ["1", "2 ", "1"]
    assert ("x-latin", "caf\xe9 \x80") in logged[0]


def _coded(text, kind):
    return text if kind is str else text.encode("latin-1")
