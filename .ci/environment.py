"""Make a virtual environment with the project in it: ``python .ci/environment.py FOLDER [EXTRA,EXTRA]``.

What is there already and complete is kept; what an earlier attempt left is made anew, as is an environment for another
pyproject.toml, another Python or another place. While one is being made, a second attempt waits, also for a pip that
goes on though whoever started it was killed. Each step is said as it is taken. Old Pythons can read this file, and are
told that they are too old.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time

OLDEST = (3, 10)

#: Written when all is done. Without it an environment is incomplete.
STAMP = ".installed"

FILES = ("setup.py", "pyproject.toml")


def main(folder, extras=""):
    """Make it, unless it is there; return the exit code."""
    if sys.version_info < OLDEST:
        return fail("Python %d.%d is too old, 3.10 is the oldest: make PYTHON=python3.12 ..." % sys.version_info[:2])
    # Next to the folder, which is removed. Children have it open as well, so that the lock lasts as long as they do.
    lock = os.open(folder + ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"another installation into {folder} goes on: waiting for its end")
        fcntl.flock(lock, fcntl.LOCK_EX)
    wanted = description(folder, extras)
    if is_complete(folder, wanted):
        return 0
    if importlib.util.find_spec("ensurepip") is None:  # Debian has it in a package of its own
        return fail("this Python has no ensurepip: install it (Debian, Ubuntu: apt-get install python3-venv)")
    began = time.monotonic()
    say(f"making {folder}, with {sys.executable}")
    python = os.path.join(folder, "bin", "python")
    try:
        if os.path.exists(os.path.join(folder, STAMP)):
            os.unlink(os.path.join(folder, STAMP))
        run(sys.executable, "-m", "venv", "--clear", folder)
        what = f".[{extras}]" if extras else "."
        say("pip installs greentx" + (f" and what is needed for {extras.replace(',', ', ')}" if extras else ""))
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", what)
    except subprocess.CalledProcessError as error:
        return fail(f"{error}; the next attempt begins anew")
    with open(os.path.join(folder, STAMP), "w", encoding="utf-8") as file:
        file.write(wanted)
    say(f"{folder} is ready after {time.monotonic() - began:.0f} s, {megabytes(folder):.0f} MB")
    return 0


def description(folder, extras):
    """Return what an environment is made of."""
    digest = hashlib.sha256()
    for name in FILES:
        with open(name, "rb") as file:
            digest.update(file.read())
    return json.dumps([os.path.abspath(folder), sys.version, extras, digest.hexdigest()])


def is_complete(folder, wanted):
    """Whether there is an environment as *wanted*, whose Python still runs."""
    try:
        with open(os.path.join(folder, STAMP), encoding="utf-8") as file:
            if file.read() != wanted:
                return False
        return subprocess.call([os.path.join(folder, "bin", "python"), "-c", ""]) == 0
    except OSError:
        return False


def run(*command):
    """Run a program that keeps the lock."""
    subprocess.run(command, check=True, close_fds=False)


def megabytes(folder):
    """Return the size of a folder."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    return sum(os.lstat(path).st_size for path in paths) / 1e6


def say(text):
    """Tell a step."""
    print(text, flush=True)


def fail(text):
    """Tell why it failed; return the exit code."""
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("interrupted; the next attempt begins anew")
