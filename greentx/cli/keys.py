"""``greentx keys``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .arguments import errors_as_one_line

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add ``keys`` to the subcommands."""
    keys = commands.add_parser("keys", help="make CURVE keys", description=_keys.__doc__)
    keys.set_defaults(function=_keys)
    keys.add_argument(
        "name", metavar="NAME", help="whose keys they are: the files will be NAME.key and NAME.key_secret"
    )
    keys.add_argument("--folder", metavar="FOLDER", default=".", help="where to write them (here)")


def _keys(arguments: argparse.Namespace) -> int:
    """Make a pair of CURVE keys: NAME.key, for others, and NAME.key_secret, which only this user may read."""
    from ..transport.keys import make_key_files

    with errors_as_one_line():
        os.makedirs(arguments.folder, mode=0o700, exist_ok=True)
        public, secret = make_key_files(arguments.folder, arguments.name)
    print(f"{public}  for others: their curve_allow=, curve_server= or curve_relay=")  # noqa: T201 - the answer
    print(f"{secret}  yours alone: curve_secret=")  # noqa: T201 - the answer
    return 0
