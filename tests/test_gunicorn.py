"""What the worker class tells gunicorn, without a front end."""

from __future__ import annotations

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger

from greentx.gunicorn import CONNECT_VARIABLE, SIZE_VARIABLE, Worker


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
    worker = make(monkeypatch, url="mongrel2://a@host", raw_env=[f"{SIZE_VARIABLE}={size}"])
    with pytest.raises(SystemExit) as caught:
        worker.init_process()
    assert caught.value.code == Arbiter.WORKER_BOOT_ERROR
    assert f"GREENTX_MAX_MESSAGE_SIZE is '{size}', which is no number of bytes" in capfd.readouterr().err
    worker.tmp.close()


def test_the_configuration_comes_before_the_environment(monkeypatch):
    """What raw_env says is what gunicorn's own settings say."""
    worker = make(monkeypatch, url="from the environment", raw_env=[f"{CONNECT_VARIABLE}=from the file"])
    assert worker._setting(CONNECT_VARIABLE) == "from the file"
    worker.tmp.close()
    worker = make(monkeypatch, url="from the environment")
    assert worker._setting(CONNECT_VARIABLE) == "from the environment"
    worker.tmp.close()
