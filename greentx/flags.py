"""The words for yes and no, wherever settings are texts: variables of the environment, gunicorn's configuration."""

from __future__ import annotations

from typing import Final

__all__ = ["FLAGS"]

#: In lower case.
FLAGS: Final = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
