"""A real redis-server for a test, which is killed, stopped and started again as the test likes."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import redis
from gevent import subprocess
from needs import go_without


def need_redis() -> None:
    """Skip the test on a machine without redis-server; in CI it fails."""
    if not shutil.which("redis-server"):
        go_without("redis-server", "redis-server", "GREENTX_WITHOUT_REDIS")


class RedisServer:
    """A redis-server on a Unix socket that keeps nothing.

    Attributes:
        url: Where it is.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._path = self._folder / "redis.sock"
        self.url = f"unix://{self._path}"
        self._process: Any = None

    def start(self) -> None:
        """Start it; blocks until it answers."""
        self._path.unlink(missing_ok=True)
        options = ["--port", "0", "--unixsocket", str(self._path), "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        with gevent.Timeout(20, AssertionError("redis-server does not answer")):
            while True:
                with contextlib.suppress(redis.RedisError):
                    self.ask("PING")
                    return
                gevent.sleep(0.01)

    def ask(self, *command: Any) -> Any:
        """Send one command."""
        with contextlib.closing(redis.Redis(unix_socket_path=str(self._path), socket_timeout=10)) as client:
            return client.execute_command(*command)

    def pause(self) -> None:
        """Let it stand still."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def names(self) -> set[str]:
        """Return the keys that it has."""
        return {key.decode() for key in self.ask("KEYS", "*")}


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    """One that runs."""
    need_redis()
    with tempfile.TemporaryDirectory(prefix="gt-redis-") as folder:
        server = RedisServer(folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()
