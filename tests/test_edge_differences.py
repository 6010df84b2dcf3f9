"""The list of where the embedded front end is not Mongrel2 has the reason of each test that says both truths."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
LIST = TESTS.parent / "docs" / "edge-differences.rst"


def cited() -> dict[str, str]:
    """The reasons that tests name, each with a file that does."""
    found: dict[str, str] = {}
    for path in TESTS.rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        if "Differs(" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Differs":
                    reason = node.args[0]
                    assert isinstance(reason, ast.Constant), f"{path.name}:{node.lineno} has no literal reason"
                    found[str(reason.value)] = path.name
    return found


def test_each_reason_that_a_test_names_is_in_the_list():
    """With what Mongrel2 does, what the embedded front end does, and why."""
    rows = re.findall(r"^   \* - (.+)\n     - (?!Mongrel2$)", LIST.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    reasons = cited()
    assert len(reasons) >= 15
    assert {reason: name for reason, name in reasons.items() if reason not in rows} == {}
