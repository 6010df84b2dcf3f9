"""What each module offers, and which way the modules lean on each other."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import greentx

ROOT = Path(__file__).parent.parent / "greentx"
MODULES = sorted(ROOT.rglob("*.py"))

#: README's module map is the rule: a line imports only from lines above it.
README = (ROOT.parent / "README.rst").read_text(encoding="utf-8")
FOLDERS = re.findall(r"^    ([a-z]+)\b", README.split("\nModule map\n")[1].split("\nLimits\n")[0], re.MULTILINE)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, *, for_types: bool = True) -> set[str]:
    """The modules of ours that a module imports, wherever in it; with what is for type checkers only, or without."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            node.body = []
    name = name_of(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
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

#: Whose modules say in __all__ all that they have for others.
CORE = {"errors", "version", "protocol", "transport", "handler", "standin", "relay"}


def folder_of(name: str) -> str:
    """The line of the map that a module belongs to; the package itself gathers what is public."""
    return name.split(".")[1] if "." in name else ""


INSIDE = [path for path in MODULES if folder_of(name_of(path)) not in ("", "__main__")]


def test_the_map_has_every_folder():
    """Each once."""
    assert sorted(FOLDERS) == sorted({folder_of(name_of(path)) for path in INSIDE})


@pytest.mark.parametrize("path", INSIDE, ids=name_of)
def test_a_folder_imports_only_what_stands_before_it(path):
    """Not for types either."""
    name = name_of(path)
    own = FOLDERS.index(folder_of(name))
    assert {one for one in imported(path) if FOLDERS.index(folder_of(one)) > own} == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_of_a_folder_import_one_way(folder):
    """There is an order in which they can be read."""
    files = {name_of(path): path for path in INSIDE if folder_of(name_of(path)) == folder}
    left = {name: imported(path, for_types=False) & files.keys() - {name} for name, path in files.items()}
    while left:
        ready = {name for name, needed in left.items() if not needed & left.keys()}
        assert ready, f"these import one another: {sorted(left)}"
        left = {name: needed for name, needed in left.items() if name not in ready}


@pytest.mark.parametrize("name", sorted(name for name in ALL if folder_of(name) in CORE))
def test_all_names_what_is_public(name):
    """Each name of __all__ is there; each public class and function is in it, unless it says why by its underscore."""
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    assert not [one for one in module.__all__ if not hasattr(module, one)]
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    assert {one for one in defined if not one.startswith("_")} - set(module.__all__) - INTERNAL.get(
        name, set()
    ) == set()


#: What only describes a parameter of something public.
INTERNAL = {
    "greentx.handler.control": {"Controlled"},
    "greentx.handler.remote": {"Owner"},
    "greentx.standin.client": {"Host"},
    "greentx.standin.connector": {"Host"},
}


def test_the_package_gathers_what_is_public():
    """What the README says one may import is there, and is in __all__."""
    public = {"Transceiver", "Connection", "Request", "Response", "WebSocket", "GreentxError", "__version__"}
    public |= {"Server", "Connector", "Client"}
    assert public <= set(greentx.__all__)
    assert all(hasattr(greentx, name) for name in greentx.__all__)
