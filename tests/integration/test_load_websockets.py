"""A thousand real sockets through a real mongrel2, with pings of one second: none is lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from websocket_rig import in_thread, rig

pytestmark = pytest.mark.mongrel2

COUNT = 1000
#: The full measure is a minute: ``GREENTX_LOAD_SECONDS=60``.
SECONDS = float(os.environ.get("GREENTX_LOAD_SECONDS", "8"))


@pytest.mark.timeout(SECONDS * 2 + 60)
def test_a_thousand_sockets_echo_and_none_is_lost() -> None:
    """Every message comes back, every ping is answered, every close is clean."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    ends = []

    def handler(ws: object) -> None:
        for message in ws:  # type: ignore[attr-defined]
            ws.send(message)  # type: ignore[attr-defined]
        ends.append(ws.close_code)  # type: ignore[attr-defined]

    with rig(handler, settings={"net.tcp_keepalive": 1}, ping_timeout=1) as one:
        program = Path(__file__).with_name("browsers.py")
        command = [sys.executable, str(program), str(one.mongrel2.port), str(COUNT), str(SECONDS)]
        done = in_thread(lambda: subprocess.run(command, capture_output=True, text=True, timeout=SECONDS * 2 + 50))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["lost"] == 0, found["why"]
        assert found["opened"] == COUNT
        assert found["echoes"] >= 3 * COUNT  # how fast they come is the machine's affair
        assert found["pings"] >= COUNT * (SECONDS - 3)
        assert ends == [1000] * COUNT
        assert len(one.trans.websockets) == 0
