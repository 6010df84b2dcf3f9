"""The handler has no descriptors, or no memory, for a while: single messages fail, then it goes on."""

from __future__ import annotations

import os
import resource
import tempfile

import gevent
from harness import SERVER_DIED, Broken, ReadyWatch, Rig, Run, scenario

NO_MEMORY = "the handler had no memory for the body"
MIB = 1024 * 1024


@scenario(seconds=1.0)
def no_descriptors(run: Run, *, seconds: float = 5.0, mode: str = "serve") -> None:
    """Neither files nor sockets can be opened, also for a mongrel2 that has restarted; afterwards all is well."""
    with tempfile.TemporaryDirectory(prefix="greentx-chaos-") as store:
        settings = {
            "upload.temp_store": f"{store}/upload.XXXXXX",
            "limits.content_length": 16384,
            "limits.buffer_size": 16384,
        }
        with run.rig(mode=mode, settings=settings) as rig:
            rig.callers(8)
            rig.callers(2, upload=100_000, pause=0.02)
            rig.talkers(4)
            # What was being stored as mongrel2 was killed, and was not with the handler yet, is known to nobody.
            nobodys: set[str] = set()
            with ReadyWatch(rig):
                for restarts in (False, True):
                    rig.progress(100)
                    before = rig.handler.descriptors()
                    _limit(rig, resource.RLIMIT_NOFILE, before)
                    if restarts:
                        with rig.fault(SERVER_DIED):
                            rig.server.kill()
                            nobodys.update(os.listdir(store))
                            rig.server.start()
                    gevent.sleep(seconds)  # so long there is none
                    _limit(rig, resource.RLIMIT_NOFILE, before + 1000)
                    rig.progress(200)
            rig.finish()
            _check_lives(rig)
            # An application that cannot open the file of an upload fails, and that is answered.
            rig.check(refused=(500, 503), ended=(1006,))
            rig.until(lambda: nobodys.issuperset(os.listdir(store)), "stored uploads to be deleted")


@scenario(seconds=1.5)
def no_memory(run: Run, *, seconds: float = 5.0, size: int = 6 * MIB, mode: str = "serve") -> None:
    """Bodies that do not fit into memory are lost, and nothing but them."""
    with run.rig(mode=mode, settings={"limits.content_length": 2 * size}) as rig:
        rig.callers(4, pause=0.01)
        rig.talkers(4)
        rig.progress(100)
        with ReadyWatch(rig), rig.fault(NO_MEMORY, "u"):
            # Enough for ZeroMQ's copy of a body, and not for the next one.
            _limit(rig, resource.RLIMIT_AS, rig.handler.address_space() + size * 3 // 2)
            rig.callers(2, upload=size, patience=4.0)
            gevent.sleep(seconds)  # so long there is none
            _limit(rig, resource.RLIMIT_AS, resource.RLIM_INFINITY)
        rig.progress(200)
        rig.finish()
        _check_lives(rig)
        rig.check(refused=(413, 500, 503))


def _limit(rig: Rig, what: int, soft: int) -> None:
    _, hard = resource.prlimit(rig.handler.pid, what)
    if hard != resource.RLIM_INFINITY and (soft > hard or soft == resource.RLIM_INFINITY):
        soft = hard
    resource.prlimit(rig.handler.pid, what, (soft, hard))


def _check_lives(rig: Rig) -> None:
    if rig.handler.status is not None:
        raise Broken(f"the handler ended with {rig.handler.status}")
