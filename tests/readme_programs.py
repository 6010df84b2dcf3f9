"""The programs that README shows."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: What they import of their reader's, by the file that it is in.
OTHERS = {
    "app.py": """
from collections.abc import Iterable
from typing import Any

def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"hello"]
""",
    "handler.py": """
from greentx import Connection, Request

def hello(conn: Connection, req: Request) -> None:
    conn.reply_http(req, f"Hello from {req.path}\\n")
""",
}


def programs() -> list[str]:
    """Return all of them, in order."""
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    found = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    return [textwrap.dedent(one).strip() for one in found]


def program_with(text: str) -> str:
    """Return the first one that has *text* in it."""
    return next(one for one in programs() if text in one)
