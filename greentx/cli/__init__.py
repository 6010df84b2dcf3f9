"""The command ``greentx``: arguments turned into one call.

``greentx serve MODULE:APP`` serves a WSGI application; ``greentx edge`` is a front end for handlers; ``greentx demo``
is a chat to look at; ``greentx keys NAME`` makes CURVE keys. This is the only place in the package that monkey-patches:
before the application is imported, in the process that runs it.

:mod:`greentx.cli.options` says how options, variables of the environment and ``--env-file`` go together,
:mod:`greentx.cli.logs` what is logged where.

With ``--reload`` there are two processes. The first one owns the front end (with ``--bind``), so that requests wait in
it while the second one, which runs the application, is replaced. That one watches the files of the modules that it has
imported, and ends with :data:`EXIT_RELOAD` when one of them changes.

Exit codes: 0 for an end that was asked for (SIGTERM, Ctrl-C), 1 for what kept it from serving, 2 for wrong arguments.
"""

from __future__ import annotations

# Importing this patches nothing, so that tests and gunicorn may: `serve` patches, in the process that it is to run in.
from .arguments import Failure
from .loading import load_application
from .main import build_parser, main
from .worker import EXIT_RELOAD

# `python -m greentx` and the console script both call main().
__all__ = ["EXIT_RELOAD", "Failure", "build_parser", "load_application", "main"]
