"""Run the tutorials of the documentation as a reader does: block after block, in one folder."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
OWN_DATA = DOCS / "own-data.md"
TUTORIALS = [*sorted((DOCS / "tutorials").glob("*.md")), OWN_DATA]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    output: str | None


def blocks(page: Path) -> list[Block]:
    """Return the blocks to run; a ``text`` block right behind a Python block is its output."""
    found = [(match[1], match[2]) for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))]
    runnable = []
    for (language, code), following in zip(found, [*found[1:], ("", "")], strict=True):
        if language in ("sh", "python"):
            output = following[1] if language == "python" and following[0] == "text" else None
            runnable.append(Block(language, code, output))
    return runnable


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_is_printed(page: Path, tmp_path: Path) -> None:
    shutil.copy(DOCS / "images" / "scene.png", tmp_path)
    found = blocks(page)
    assert found, "a tutorial shows something that a reader can run"
    beside = Path(sys.executable).parent
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}

    if page == OWN_DATA:  # what it adds is nobody else's
        environment["FLMM_CACHE"] = str(tmp_path / "cache")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    for language, group in itertools.groupby(found, key=lambda block: block.language):
        listed = list(group)
        if language == "sh":
            for block in listed:
                run("bash", "-euo", "pipefail", "-c", block.code)
            continue
        mark = "--- end of a block ---"
        outputs = run(sys.executable, "-c", "".join(f"{block.code}\nprint({mark!r})\n" for block in listed)).split(
            f"{mark}\n"
        )
        for block, printed in zip(listed, outputs, strict=False):
            assert block.output is None or printed == block.output


def test_the_blocks_of_a_page_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n```sh\nls\n```\nb\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n```text\nx\n```\n")
    assert blocks(page) == [Block("sh", "ls\n", None), Block("python", "print(1)\n", "1\n")]
