"""The disk that stored uploads go to is full for a while. It is one of our own: the run has a mount namespace."""

from __future__ import annotations

import os
import subprocess
import tempfile

import gevent
from harness import Run, scenario

DISK_FULL = "mongrel2 could not write the upload to the disk, and closed its connection"


@scenario(seconds=1.0, own_mounts=True)
def disk_full(run: Run, *, seconds: float = 5.0, mode: str = "serve") -> None:
    """Uploads fail, nothing else does; with room again they go on, and no file is left."""
    with tempfile.TemporaryDirectory(prefix="greentx-chaos-") as store:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", store], check=True)
        try:
            _fill_and_free(run, store, seconds, mode)
        finally:
            subprocess.run(["umount", store], check=True)


def _fill_and_free(run: Run, store: str, seconds: float, mode: str) -> None:
    settings: dict[str, int | str] = {"upload.temp_store": f"{store}/upload.XXXXXX", "limits.content_length": 16384}
    with run.rig(mode=mode, settings=settings, patience=5.0) as rig:
        rig.callers(6)
        rig.callers(2, upload=100_000, pause=0.01)
        rig.talkers(4)
        rig.progress(100)
        with rig.fault(DISK_FULL, "u"):
            filler = os.path.join(store, "filler")
            with open(filler, "wb") as file:
                file.write(bytes(1024 * 1024))
                room = os.statvfs(store)
                file.write(bytes(room.f_bavail * room.f_bsize - 8192))
            gevent.sleep(seconds)  # so long it is full
            os.unlink(filler)
        uploads = rig.callers(1, upload=100_000, count=5)
        rig.until(lambda: all(one.finished for one in uploads), "uploads after there was room again")
        rig.progress(100)
        rig.finish()
        rig.check(refused=(413, 500, 503))
        rig.until(lambda: not os.listdir(store), "stored uploads to be deleted")
