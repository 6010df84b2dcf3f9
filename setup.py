"""What greentx is called, needs and ships. Settings of the tools are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    """Return ``__version__`` of the package without importing it: its requirements are not there yet."""
    path = HERE / "greentx" / "version.py"
    match = re.search(r'^__version__ = "([^"]+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise RuntimeError(f'{path} has no line of the form: __version__ = "1.2.3"')
    return match.group(1)


def read_readme() -> str:
    """Return the text shown on the package index."""
    path = HERE / "README.rst"
    return path.read_text(encoding="utf-8") if path.exists() else ""


# The lower bounds are the first releases with wheels for Python 3.12, a version later than the oldest supported one,
# so that one set of bounds is tested everywhere. netifaces has no wheels after 3.9: it is compiled, which is
# why a C compiler and Python's headers are needed.
REQUIRES = [
    "gevent>=23.9",
    "netifaces>=0.11.0",
    "pyzmq>=25.1.1",
    "tnetstring3>=0.4.0",
]

EXTRAS = {
    # Mongrel2's JSON headers and `METHOD` JSON bodies, decoded about four times faster than by the standard library.
    "speed": ["msgspec>=0.18"],
    "gunicorn": ["gunicorn>=23.0"],
    "tests": [
        "bottle>=0.13",
        "django>=4.2",
        "falcon>=4.0",
        "flask>=3.0",
        "flask-sock>=0.7",
        "gunicorn>=23.0",
        "hypothesis>=6.90",
        "msgspec>=0.18",
        "pytest>=8.0",
        "pytest-cov>=5.0",
        "pytest-timeout>=2.2",
        "pytest-xdist>=3.5",
        "python-socketio[client]>=5.11",
        "websockets>=13.0",
    ],
    "bench": ["gunicorn>=23.0", "matplotlib>=3.8", "pyperf>=2.6", "websockets>=13.0"],
    # Exact minor versions: what is clean for one contributor is clean for all.
    "dev": ["mypy==2.4.*", "ruff==0.17.*"],
}

setup(
    name="greentx",
    version=read_version(),
    description="A gevent greenlet server toolkit for Mongrel2: HTTP, WebSockets and WSGI over ZeroMQ",
    long_description=read_readme(),
    long_description_content_type="text/x-rst",
    license="MIT",
    author="greentx contributors",
    packages=find_packages(include=["greentx", "greentx.*"]),
    package_data={"greentx": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["greentx = greentx.cli:main"]},
    zip_safe=False,
    keywords="mongrel2 gevent zeromq websocket wsgi",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: WWW/HTTP :: HTTP Servers",
        "Topic :: Internet :: WWW/HTTP :: WSGI :: Server",
        "Typing :: Typed",
    ],
)
