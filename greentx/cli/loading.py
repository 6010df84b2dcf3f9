"""Applications by their names, and the source files that they came from."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .arguments import Failure

__all__ = ["DEFAULT_NAMES", "MISSING", "check_name", "file_state", "files_of", "load_application", "source_files"]

#: The application of a module that is named alone, the first one that is there.
DEFAULT_NAMES = ("application", "app")

# What makes one, as it is usually called.
_FACTORIES = ("create_app", "make_app", "create_application", "get_app")

#: What :func:`file_state` returns of a file that is not there. No file has it, so that to appear is a change.
MISSING = (0, 0)


def source_files() -> frozenset[str]:
    """Return the files of all modules that are imported now."""
    # A copy: another greenlet may import while the files are listed.
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return frozenset(file for file in files if isinstance(file, str))


def files_of(error: BaseException) -> frozenset[str]:
    """Return the files that an import failed in: the modules are not there, or no more; and those that it lacks."""
    # The modules that were being imported: they are no more in sys.modules once their import has failed.
    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    if isinstance(error, SyntaxError) and error.filename:
        files.add(error.filename)
    if isinstance(error, ModuleNotFoundError) and error.name:
        parent, _, name = error.name.rpartition(".")
        folders = getattr(sys.modules.get(parent), "__path__", ()) if parent else sys.path
        for folder in folders:
            # A folder without __init__.py is a package, too.
            path = os.path.join(folder or os.getcwd(), name)
            files.update((path, f"{path}.py", os.path.join(path, "__init__.py")))
    return frozenset(files)


def file_state(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return MISSING
    return (status.st_mtime_ns, status.st_size)


def load_application(name: str, folder: str = "") -> Callable[..., Any]:
    """Return what ``MODULE:APP`` names, or what the call ``MODULE:create_app("x")`` returns.

    Without ``:APP`` it is the module's ``application``, or ``app``.

    Args:
        folder: Where the module is looked for first; ``""`` is the folder that we are in, as with ``python -m``.

    Raises:
        Failure: There is no such module, or nothing of that name in it that could be called as PEP 3333 says.
        Exception: What the module, or the call, raises.
    """
    module_name, attribute = _split_name(name)
    # A console script has its own folder in front of sys.path, not the one that the user is in.
    folder = os.path.abspath(folder)
    if not os.path.isdir(folder):
        raise Failure(f"there is no folder {folder}", 2)
    sys.path[:] = [folder, *(one for one in sys.path if one != folder)]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Another module that is missing is the application's own error, and needs its traceback.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        hint = f"; write {_meant(module_name, attribute)}" if module_name.endswith(".py") else ""
        raise Failure(f"there is no module {error.name!r}, in {folder} or elsewhere{hint}", 2) from error
    if not attribute:
        return _default(module)
    expression = _parsed(name, attribute)
    path, call = (expression.func, expression) if isinstance(expression, ast.Call) else (expression, None)
    found: Any = module
    for part in ast.unparse(path).split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise Failure(f"module {module_name!r} has no {ast.unparse(path)!r}", 2) from None
    if call is not None:
        if not callable(found):
            raise Failure(f"{name}: {ast.unparse(path)} is {_kind(found)}, which cannot be called", 2)
        found = found(
            *map(ast.literal_eval, call.args),
            **{one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg is not None},
        )
    return _checked(name, found)


def _default(module: ModuleType) -> Callable[..., Any]:
    """Return the application of a module that was named alone."""
    for attribute in DEFAULT_NAMES:
        # A package may have a module of that name.
        found = getattr(module, attribute, None)
        if callable(found):
            return _checked(f"{module.__name__}:{attribute}", found)
    factory = next((name for name in _FACTORIES if callable(getattr(module, name, None))), None)
    meant = f"{module.__name__}:{factory}()" if factory else f"{module.__name__}:NAME"
    raise Failure(f"module {module.__name__!r} has neither {' nor '.join(DEFAULT_NAMES)}; write {meant}", 2)


def _checked(name: str, found: Any) -> Callable[..., Any]:
    if not callable(found):
        raise Failure(f"{name} is {_kind(found)}, which cannot be called", 2)
    try:
        signature = inspect.signature(found)
    except ValueError:  # one in C does not say
        signature = None
    try:
        if signature is not None:
            signature.bind({}, None)
    except TypeError as error:
        # It would fail at each request. The usual slip is to name the function that makes the application.
        hint = "" if name.endswith(")") else f"; if it makes the application, write {name}()"
        if signature is not None and next(iter(signature.parameters), "") == "scope":
            hint = "; it looks like an ASGI application, which this server cannot run"
        raise Failure(f"{name} cannot be called with (environ, start_response): {error}{hint}", 2) from error
    application: Callable[..., Any] = found
    return application


def _kind(found: Any) -> str:
    name = type(found).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _parsed(name: str, attribute: str) -> ast.expr:
    """Return ``NAME``, ``NAME.NAME`` or a call of one, whose arguments are literals."""
    try:
        expression = ast.parse(attribute.strip(), mode="eval").body
        call = expression if isinstance(expression, ast.Call) else None
        if call is not None:
            for value in (*call.args, *(one.value for one in call.keywords)):
                ast.literal_eval(value)
        path = expression if call is None else call.func
        if re.fullmatch(r"\w+(\.\w+)*", ast.unparse(path)) and all(one.arg for one in (call.keywords if call else ())):
            return expression
    except (SyntaxError, ValueError):
        pass
    raise Failure(f"{name!r} is not of the form MODULE:APP, nor MODULE:create_app('text', number=1)", 2)


def check_name(name: str | None, command: str) -> None:
    """Refuse, before anything starts, what names no application. It is not imported for this.

    Args:
        name: As said; ``None`` where nothing was.
        command: Of the program, for the message.
    """
    if not name:
        raise Failure(f"which application? Write greentx {command} MODULE:APP, or set GREENTX_APP", 2)
    _split_name(name)


def _split_name(name: str) -> tuple[str, str]:
    """Return the module of ``MODULE:APP``, and what stands behind the colon; ``""`` without one."""
    module_name, colon, attribute = name.partition(":")
    if not module_name or (colon and not attribute):
        raise Failure(f"{name!r} is not of the form MODULE:APP", 2)
    # The usual slip: a path, as shells complete it.
    if "/" in module_name or module_name.startswith("."):
        raise Failure(f"{module_name!r} is not the name of a module; write {_meant(module_name, attribute)}", 2)
    if attribute:
        _parsed(name, attribute)
    return module_name, attribute


def _meant(path: str, attribute: str) -> str:
    """Return the name of the application in the module that *path* leads to, for users who write one for the other."""
    path = os.path.normpath(path.removesuffix(".py"))
    if path.startswith(("/", "../")):
        # In the folder where it is.
        path = os.path.basename(path)
    module_name = path.lstrip(".").replace("/", ".") or "MODULE"
    return f"{module_name}:{attribute}" if attribute else module_name
