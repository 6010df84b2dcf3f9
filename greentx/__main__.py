"""``python -m greentx``: the same as the command ``greentx``."""

from __future__ import annotations

import os
import sys

from .cli import main

__all__ = ["main"]

if __name__ == "__main__":
    # The command has the folder that we are in nowhere in the path; Python puts it in front, unless it is told not to.
    if sys.path[0] == os.getcwd() and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    sys.exit(main())
