"""A gunicorn with our worker class, as a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from spoken_program import SpokenProgram

import greentx
from greentx.edge import Mongrel2


class Gunicorn(SpokenProgram):
    """A running gunicorn; what it says is kept."""

    def __init__(self, folder: Path, url: str | None, *arguments: str, app: str = "gunicorn_app:app") -> None:
        # gunicorn puts its control socket into the home folder.
        path = [str(Path(greentx.__file__).parent.parent), str(Path(__file__).parent)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "HOME": str(folder)}
        if url is not None:
            environ["GREENTX_CONNECT"] = url
        options = ["-k", "greentx.gunicorn.Worker", "--bind", "127.0.0.1:0", *arguments, app]
        # Not -m gunicorn: after SIGUSR2 its folder would be the first that modules are looked for in.
        super().__init__([sys.executable, str(Path(sys.executable).with_name("gunicorn")), *options], folder, environ)


def url_of(mongrel2: Mongrel2) -> str:
    """Return what gunicorn has to be told."""
    (handler,) = mongrel2.handlers
    return f"mongrel2://{handler.sender}@?pull={handler.send_spec}&pub={handler.recv_spec}"
