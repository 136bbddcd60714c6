"""What is installed for tests and checks is named by its content."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([A-Za-z0-9._-]+==[^\s;\\]+)", re.MULTILINE)


@pytest.mark.parametrize("name", ["constraints", "constraints-vlmevalkit"])
def test_every_pin_has_hashes(name: str) -> None:
    locked = (ROOT / f"{name}.lock").read_text()
    assert set(PIN.findall(locked)) == set(PIN.findall((ROOT / f"{name}.txt").read_text())), "run: make constraints"
    for entry in re.split(r"\n(?=\S)", locked):
        assert not PIN.match(entry) or "--hash=sha256:" in entry, entry


def test_actions_are_named_by_commit() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        used = re.findall(r"^\s*(?:- )?uses: (\S+)", path.read_text(), re.MULTILINE)
        assert used
        assert all(re.search(r"@[0-9a-f]{40}$", one) for one in used), path
