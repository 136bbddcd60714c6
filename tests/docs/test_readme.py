"""Every command in README and in the page about real training is one that the programs accept."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from flmm_plugin.adapters.answering.arguments import ModelArguments
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.cli import build_parser
from flmm_plugin.cli.listing import tasks
from flmm_plugin.cli.reproduce import specs_of
from flmm_plugin.options import arguments_of
from flmm_plugin.training.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[2]
#: Tasks of lmms-eval itself that are shown.
STOCK = {"mme"}


def lines(page: str) -> list[str]:
    """Return the lines of shell blocks, and commands in the text or in tables."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`((?:flmm|lmms_eval) [a-z-][^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for block in blocks for line in block.splitlines()] + inline


def commands(program: str) -> list[str]:
    pages = ("README.md", "docs/train-for-real.md")
    return sorted({line for page in pages for line in lines(page) if line.startswith(f"{program} ")})


@pytest.mark.parametrize("line", commands("flmm"))
def test_a_line_of_flmm_is_accepted(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    args = build_parser(words[0]).parse_args(words)
    if words[0] == "train" and args.config:
        assert read_recipe(args.config, args.changes)
    if words[0] == "reproduce":
        assert specs_of(args.backbones)


@pytest.mark.parametrize("line", commands("lmms_eval"))
def test_a_line_of_lmms_eval_names_what_there_is(line: str) -> None:
    words = shlex.split(line, comments=True)
    given = dict(zip(words[1::2], words[2::2], strict=True))
    known = {task["name"] for task in tasks()} | STOCK
    assert set(given["--tasks"].split(",")) <= known
    assert ModelArguments.read(DEFAULTS[given["--model"]], arguments_of(given.get("--model_args", ""))).pretrained


def test_the_three_lines_of_the_readme_are_there() -> None:
    assert any("--model flmm_deepseekvl --tasks mme,refcoco_seg" in line for line in commands("lmms_eval"))
    assert any(line.startswith("flmm reproduce table1 --backbones deepseek-vl-1.3b") for line in commands("flmm"))
