"""Options that may also be said by the environment: ``--max-message-size`` by ``GREENTX_MAX_MESSAGE_SIZE``.

The command line comes first, then the environment, then the file of ``--env-file``, then the default. A variable that
is empty is not set; several values of one option have spaces in between.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..flags import FLAGS
from .arguments import Failure

__all__ = ["Group", "Options", "read_env_file"]

_PREFIX = "GREENTX_"

# As shells, docker and python-dotenv have it, without what these do differently: no expansion, no escapes.
_LINE = re.compile(
    r"""\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*"""
    # A "#" behind a space begins a comment, also where the value is empty.
    r"""(?:"([^"]*)"|'([^']*)'|((?:[^"'\s\#]|(?<==)\#).*?|))\s*(?:(?<=\s)\#.*)?"""
)


class Options:
    """The options of one command.

    Args:
        parser: The command's; its options are added here, so that they are known.
        exclusive: Names of options of which one only may be said; one on the command line is the only one then.
    """

    def __init__(self, parser: argparse.ArgumentParser, exclusive: Sequence[str] = ()) -> None:
        self._parser = parser
        self._exclusive = exclusive
        self._options: list[_Option] = []

    def group(self, title: str) -> Group:
        """Return what adds options that stand under *title* in the help."""
        return Group(self, self._parser.add_argument_group(title))

    def added(self, option: _Option) -> None:
        """*option* was added to the parser."""
        self._options.append(option)

    def fill_in(self, arguments: argparse.Namespace, environ: Mapping[str, str]) -> Mapping[str, str]:
        """Set in *arguments* what the command line did not say; where that fails the rest has its defaults.

        Returns:
            What the file of ``--env-file`` says, for the application: what *environ* has already is not in it.

        Raises:
            Failure: A value is wrong; the message names its variable, and the file that it came from.
        """
        said = [name for name in self._exclusive if hasattr(arguments, name)]
        if len(said) > 1:
            self._parser.error(f"{' and '.join(_written(name) for name in said)} exclude each other")
        try:
            self._read(arguments, environ, "")
            path = getattr(arguments, "env_file", None)
            found = {} if path is None else read_env_file(path)
            self._read(arguments, found, "" if path is None else f" in {path}")
        finally:
            for option in self._options:
                if not hasattr(arguments, option.dest):
                    setattr(arguments, option.dest, option.default)
        return {name: value for name, value in found.items() if name not in environ}

    def _read(self, arguments: argparse.Namespace, variables: Mapping[str, str], where: str) -> None:
        closed = self._exclusive if any(hasattr(arguments, name) for name in self._exclusive) else ()
        set_here = [name for name in self._exclusive if variables.get(_variable(name)) and name not in closed]
        if len(set_here) > 1:
            raise Failure(f"{' and '.join(map(_variable, set_here))}{where} exclude each other", 2)
        for option in self._options:
            name = _variable(option.dest)
            text = variables.get(name, "")
            if not text or hasattr(arguments, option.dest) or option.dest in closed:
                continue
            try:
                setattr(arguments, option.dest, option.read(text))
            except (argparse.ArgumentTypeError, ValueError) as error:
                raise Failure(f"{name}{where}: {error}", 2) from error


class _Option:
    def __init__(self, action: argparse.Action, default: Any, kind: Any) -> None:
        self.dest = action.dest
        self.default = default
        self._kind = kind
        self._convert: Any = action.type or str
        self._choices = action.choices

    def read(self, text: str) -> Any:
        """Return the value that a variable's *text* means."""
        if self._kind is argparse.BooleanOptionalAction:
            if text.lower() not in FLAGS:
                raise ValueError(f"{text} is not 1 or 0")
            return FLAGS[text.lower()]
        if self._kind == "append":
            return [self._convert(one) for one in text.split()]
        value = self._convert(text)
        if self._choices is not None and value not in self._choices:
            raise ValueError(f"{text} is not one of {', '.join(self._choices)}")
        return value


class Group:
    """A title of the help, and the options that stand under it; made by :meth:`Options.group`."""

    def __init__(self, options: Options, group: Any) -> None:
        self._options = options
        self._group = group

    def add(self, *names: str, default: Any = None, **how: Any) -> None:
        """Add an option, or an argument, as ``add_argument`` does."""
        # Left out where it is not said, so that it can be told from one that says the default.
        action = self._group.add_argument(*names, default=argparse.SUPPRESS, **how)
        self._options.added(_Option(action, default, how.get("action")))

    def add_switch(self, name: str, **how: Any) -> None:
        """Add an option that is on or off (``--no-...``), off by default."""
        self.add(name, action=argparse.BooleanOptionalAction, default=False, **how)

    def add_repeated(self, name: str, **how: Any) -> None:
        """Add an option that may be said several times; its value is a list."""
        self.add(name, action="append", default=[], **how)


def _variable(dest: str) -> str:
    return f"{_PREFIX}{dest.upper()}"


def _written(dest: str) -> str:
    return f"--{dest.replace('_', '-')}"


def read_env_file(path: str) -> dict[str, str]:
    """Return the variables that a file sets, a line each: ``NAME=value``, quoted or not; ``#`` begins a comment.

    Raises:
        Failure: It cannot be read; a line is something else. The message names the line.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return dict(_lines(path, file.read()))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Failure(f"--env-file {path}: {reason}", 2) from error


def _lines(path: str, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise Failure(f"{path}, line {number}: {line.strip()!r} is not NAME=value", 2)
        yield match[1], next(value for value in (*match.group(2, 3, 4), "") if value is not None)
