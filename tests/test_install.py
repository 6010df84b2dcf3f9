"""The package installs without a C compiler on every supported Python here, and ships what it should."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# What pip reads of the project. It is copied: setuptools leaves build/ and an egg-info where it works.
SOURCES = ("setup.py", "pyproject.toml", "README.rst", "LICENSE", "MANIFEST.in", "greentx")
# Folders that a source distribution has as they are: its Makefile works on all of them.
FOLDERS = (".ci", "benchmarks", "docs", "examples", "greentx", "tests")
# The setting that says where pip's packages come from stays as it is; there is no compiler.
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))} | {
    "CC": "/nonexistent",
    "CXX": "/nonexistent",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}

# Wheels are for final releases of CPython with its global lock; `venv` needs ensurepip, which Debian leaves out.
PROBE = """
import ensurepip, sys, sysconfig, venv
assert sys.implementation.name == "cpython" and sys.version_info.releaselevel == "final"
assert not sysconfig.get_config_var("Py_GIL_DISABLED")
print("%d.%d" % sys.version_info[:2], sys.executable)
"""

# What is run where the package has been installed. Where `netifaces` comes from is asked of the metadata.
LOOK = """
import importlib.metadata as metadata, json, re, sys
import netifaces
import greentx, greentx.wsgi
requires = [line for line in metadata.requires("greentx") if "extra ==" not in line]
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "versions": [greentx.__version__, metadata.version("greentx")],
    "file": greentx.__file__,
    "requires": sorted(re.match("[A-Za-z0-9._-]+", line)[0] for line in requires),
    "netifaces": sorted(set(metadata.packages_distributions()["netifaces"])),
    "loopback": netifaces.ifaddresses("lo")[netifaces.AF_INET][0]["addr"],
}))
"""


def interpreters() -> dict[str, str]:
    """Return one interpreter for each version: this one, then pyenv's, then those in PATH.

    A file's name promises nothing: pyenv has one in PATH for each version, also for those that it does not run.
    """
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": sys.executable}
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    folders = [*sorted(glob.glob(f"{glob.escape(pyenv)}/versions/*/bin")), *os.get_exec_path()]
    for version in VERSIONS:
        for folder in folders:
            path = os.path.join(folder, f"python{version}")
            if version in found or not os.access(path, os.X_OK):
                continue
            try:
                done = subprocess.run([path, "-I", "-c", PROBE], capture_output=True, text=True, timeout=30)
            except (OSError, subprocess.TimeoutExpired):
                continue
            said, _, executable = done.stdout.rstrip("\n").partition(" ")
            if (done.returncode, said) == (0, version):
                found[version] = executable
    return found


def run(*command: str | Path, cwd: Path, timeout: float) -> str:
    """Run a program without a compiler and return what it printed; fail with what it said where it fails."""
    shown = " ".join(map(str, command))
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=ENVIRON,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            printed, said = process.communicate(timeout=timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # pip's own children, too
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            printed, said = process.communicate()
            asked = "; does its package registry answer?" if "pip" in command else ""
            message = f"not done after {timeout:g} seconds{asked}\n{shown}\n{printed}{said}"
            raise pytest.fail.Exception(message, pytrace=False) from None
    if process.returncode != 0:
        # How pip says that it gave up connecting; what follows from it ("no matching distribution") misleads.
        unreached = any(words in said for words in ("Retry(total=0,", "Could not fetch URL"))
        hint = "pip reaches no package registry, which this test needs\n" if unreached else ""
        pytest.fail(f"{hint}{shown} ended with {process.returncode}:\n{printed}{said}", pytrace=False)
    return printed


INTERPRETERS = interpreters()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", sorted(INTERPRETERS, key=lambda version: int(str(version).partition(".")[2])))
def test_pip_installs_without_a_compiler(version, tmp_path):
    """``pip install .`` uses wheels only, and what it installed can be imported and run."""
    source, venv, elsewhere = (tmp_path / name for name in ("source", "venv", "elsewhere"))
    source.mkdir()
    elsewhere.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    run(INTERPRETERS[version], "-m", "venv", venv, cwd=elsewhere, timeout=60)
    python = venv / "bin" / "python"
    report = tmp_path / "report.json"
    # Byte code of all that gevent ships would take longer than the rest.
    run(python, "-m", "pip", "install", "--no-compile", "--report", report, source, cwd=elsewhere, timeout=150)

    # A wheel that was compiled here before and lies in pip's cache has the URL of its source.
    urls = {
        one["metadata"]["name"]: one["download_info"]["url"]
        for one in json.loads(report.read_text(encoding="utf-8"))["install"]
    }
    assert urls.pop("greentx") == source.as_uri()
    assert [url for url in urls.values() if not url.endswith(".whl")] == []

    found = json.loads(run(python, "-I", "-c", LOOK, cwd=elsewhere, timeout=20))
    assert Path(found.pop("file")).is_relative_to(venv)
    ours, packaged = found.pop("versions")
    assert ours == packaged
    assert found == {
        "python": version,
        "requires": ["gevent", "netifaces-plus", "pyzmq", "tnetstring3"],
        "netifaces": ["netifaces-plus"],
        "loopback": "127.0.0.1",
    }
    said = f"greentx {ours}\n"
    assert run(venv / "bin" / "greentx", "--version", cwd=elsewhere, timeout=20) == said
    assert run(python, "-I", "-m", "greentx", "--version", cwd=elsewhere, timeout=20) == said


@pytest.mark.timeout(300)
def test_the_source_distribution_has_what_make_needs_and_the_wheel_the_package_alone(tmp_path):
    """The wheel is built from the unpacked source distribution, so that the one is enough for the other."""
    source, unpacked, venv = (tmp_path / name for name in ("source", "unpacked", "venv"))
    left_out = (".git", ".venv*", ".hypothesis", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "htmlcov")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*left_out))
    unpacked.mkdir()
    run(sys.executable, "-m", "venv", venv, cwd=source, timeout=60)
    python = venv / "bin" / "python"
    # tomllib came with Python 3.11.
    settings = (source / "pyproject.toml").read_text(encoding="utf-8")
    [requires] = re.findall(r'^requires = \["(.+)"\]$', settings, re.MULTILINE)
    run(python, "-m", "pip", "install", "--quiet", requires, cwd=source, timeout=100)
    build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    archive = source / "dist" / run(python, "-c", build, cwd=source, timeout=60).splitlines()[-1]

    with tarfile.open(archive) as files:
        shipped = {one.name.partition("/")[2] for one in files.getmembers() if one.isfile()}
    files_here = {
        path.relative_to(source).as_posix()
        for folder in FOLDERS
        for path in (source / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    loose = {name for name in shipped if "/" not in name}
    assert {name for name in shipped if name.startswith(tuple(f"{folder}/" for folder in FOLDERS))} == files_here
    assert loose == {
        *("CHANGES.rst", "CONTRIBUTING.rst", "LICENSE", "MANIFEST.in", "Makefile", "README.rst"),
        *("PKG-INFO", "pyproject.toml", "setup.cfg", "setup.py"),
    }

    run("tar", "xzf", archive, "--strip-components=1", cwd=unpacked, timeout=20)
    assert "make test" in run("make", "--no-print-directory", "help", cwd=unpacked, timeout=20)
    run(python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", ".", cwd=unpacked, timeout=60)
    [wheel] = unpacked.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        installed = {name for name in files.namelist() if ".dist-info/" not in name}
        [metadata] = (files.read(name).decode() for name in files.namelist() if name.endswith("/METADATA"))
        assert [name for name in files.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
    assert installed == {name for name in files_here if name.startswith("greentx/")}
    assert "\nLicense-Expression: MIT\n" in metadata
