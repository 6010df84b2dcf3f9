"""What the worker class tells gunicorn, without a front end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger

from greentx.gunicorn import CONNECT_VARIABLE, Handler, Worker
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


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        *((word, True) for word in ("1", "true", "yes", "on", "TRUE", "Yes", True, 1)),
        *((word, False) for word in ("0", "false", "no", "off", "FALSE", "No", False, 0)),
    ],
)
def test_a_flag_is_said_by_the_words_of_the_command_line(value, meant):
    """In a variable and in the configuration file alike; numbers and truth values there, too."""
    assert parse_settings({"relay": ("greentx_relay", value)}) == {"relay": meant}


@pytest.mark.parametrize("value", ["perhaps", "nope", "2", 2, None, 1.5, ["no"]])
def test_a_flag_that_is_neither_yes_nor_no_is_refused(value):
    """The line names it, and says what to write."""
    with pytest.raises(ValueError, match=r"greentx_relay is .*: use 1, true, yes, on, 0, false, no or off"):
        parse_settings({"relay": ("greentx_relay", value)})


def test_an_entry_is_shared_or_behind_a_relay_not_both(monkeypatch, capfd):
    """Where a relay keeps connections together nothing scatters."""
    worker = make(monkeypatch, url="mongrel2://a@host", raw_env=["GREENTX_SHARED=1", "GREENTX_RELAY=1"])
    with pytest.raises(SystemExit) as caught:
        worker.init_process()
    assert caught.value.code == Arbiter.WORKER_BOOT_ERROR
    assert "GREENTX_SHARED and GREENTX_RELAY exclude each other" in capfd.readouterr().err
    worker.tmp.close()


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
