"""A handler process that shares its registry by Redis: told what to do on stdin, it answers in lines of JSON.

Arguments: the registry's URL, sender, pull, pub, the interval of pings, and ``shared`` or ``single``.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import gevent
from gevent.fileobject import FileObjectPosix

from greentx import Transceiver
from greentx.backends.redis import RedisRegistry


def say(**fields: Any) -> None:
    """One line."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def obey(trans: Transceiver, registry: RedisRegistry) -> None:
    """Do what is asked."""
    for line in FileObjectPosix(sys.stdin.buffer, "rb"):
        word, *rest = json.loads(line)
        websockets = trans.websockets
        if word == "broadcast":
            say(answer=trans.broadcast(*rest))
        elif word == "join all":
            for sid in websockets:
                websockets.join(sid, rest[0])
            say(answer=len(websockets))
        elif word == "len":
            say(answer=len(websockets))
        elif word == "count":
            say(answer=websockets.count_everywhere(*rest))
        elif word == "trips":
            assert registry.client is not None
            say(answer=registry.client.round_trips)
        elif word == "stop":
            trans.stop(5)
            return


def main(url: str, sender: str, pull: str, pub: str, interval: str, mode: str) -> None:
    """Echo what comes, and tell of each WebSocket's begin and end."""
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(levelname)s %(name)s: %(message)s")
    registry = RedisRegistry(url)
    options: dict[str, Any] = {"ping_timeout": float(interval), "shared": mode == "shared", "rep_port": False}
    with Transceiver(sender, pull, pub, registry=registry, linger=0.5, **options) as trans:
        trans.wait_ready(20)
        say(answer="ready")
        gevent.spawn(obey, trans, registry)
        for _sid, conn, req in trans.recv():
            if req.method == "WEBSOCKET":
                conn.reply_websocket(req, req.body, req.opcode)
            elif req.method == "WEBSOCKET_CLOSE":
                say(event=req.method, conn_id=req.conn_id, code=req.close_code, reason=req.close_reason)
            else:
                say(event=req.method, conn_id=req.conn_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
