"""What each module offers, and which way the modules lean on each other."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import greentx

ROOT = Path(__file__).parent.parent / "greentx"
MODULES = sorted(ROOT.rglob("*.py"))

#: A module imports from rows with a smaller number, or its own row. The longest name that fits counts.
ROWS = {
    "greentx.errors": 0,
    "greentx.headers": 0,
    "greentx.wire": 0,
    "greentx.http1": 0,
    "greentx.http1_parser": 0,
    "greentx.frames": 0,
    "greentx.deflate": 0,
    "greentx.handshake": 0,
    "greentx.registry": 0,
    "greentx.memo": 0,
    "greentx.pipeline": 0,
    "greentx.transport.outbox": 0,
    "greentx.version": 0,
    "greentx.clock": 1,
    "greentx.endpoints": 1,
    "greentx.transport": 1,
    "greentx.inbox": 2,
    "greentx.runtime": 2,
    "greentx.connection": 2,
    "greentx.session": 2,
    "greentx.dispatcher": 2,
    "greentx.pinger": 2,
    "greentx.control": 2,
    "greentx.websocket": 2,
    "greentx.transceiver": 2,
    "greentx.relay": 2,
    "greentx.server": 2,
    "greentx.connector": 2,
    "greentx.client": 2,
    "greentx.edge": 3,
    "greentx.testing": 3,
    "greentx.wsgi": 3,
    "greentx.compat": 3,
    "greentx.gunicorn": 3,
    "greentx.backends": 3,
    "greentx.metrics": 3,
    "greentx.cli": 4,
    "greentx.__main__": 4,
    "greentx": 4,  # the package itself gathers what is public
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def row_of(name: str) -> int:
    while name != "greentx":
        if name in ROWS:
            return ROWS[name]
        name = name.rpartition(".")[0]
    return ROWS["greentx"]


def imported(path: Path) -> set[str]:
    """The modules of ours that a module imports when it runs; what is for type checkers only does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    name = name_of(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            ours = {one for one in names if one in ALL}
            found |= ours if len(ours) == len(names) else ours | {base}
    return {one for one in found if one.partition(".")[0] == "greentx"}


ALL = {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    """No module imports from a row above its own."""
    name = name_of(path)
    above = {one: row_of(one) for one in imported(path) if row_of(one) > row_of(name)}
    assert not above, f"{name} is in row {row_of(name)}"


def test_every_module_has_its_row():
    """A new module is put into the table on purpose."""
    missing = {name for name in ALL if name != "greentx" and row_of(name) == ROWS["greentx"] and name not in ROWS}
    assert not missing


@pytest.mark.parametrize("name", sorted(name for name in ALL if row_of(name) < 3))
def test_all_names_what_is_public(name):
    """Each name of __all__ is there; each public class and function is in it, unless it says why by its underscore."""
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    assert not [one for one in module.__all__ if not hasattr(module, one)]
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    assert {one for one in defined if not one.startswith("_")} - set(module.__all__) - INTERNAL.get(
        name, set()
    ) == set()


#: What only describes a parameter of something public.
INTERNAL = {"greentx.control": {"Controlled"}}


def test_the_package_gathers_what_is_public():
    """What the README says one may import is there, and is in __all__."""
    public = {"Transceiver", "Connection", "Request", "Response", "WebSocket", "GreentxError", "__version__"}
    public |= {name.capitalize() for name in ("server", "connector", "client") if f"greentx.{name}" in ALL}
    assert public <= set(greentx.__all__)
    assert all(hasattr(greentx, name) for name in greentx.__all__)
