"""The paper's printed numbers (``paper_numbers.csv``, exactly as printed), its protocols, and its LMMs.

Source of every number: *F-LMM: Grounding Frozen Large Multimodal Models*, arXiv 2406.05821; the table is in the line. A
dash in the paper has no line. ``protocol`` says how a number was measured; it is empty where the paper does not say.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from flmm_plugin.errors import DataNotFound

#: Meaning of the protocols of ``paper_numbers.csv`` and of the layouts; these sentences are printed below tables.
PROTOCOLS: Mapping[str, str] = {
    "": "the paper does not say how this was measured",
    "first_expression": "first expression of each object, all of a picture in one pass (F-LMM)",
    "every_sentence": "every expression on its own, not the first of each object (LISA, LAVT)",
    "three_random_sentences": "at most three random expressions of each picture, random prompt (GLaMM)",
    "flmm_png": "whole narrative in one pass, plurals count as things (F-LMM)",
    "bcv_png": "256 x 256 masks chosen from proposals, thing or stuff by the last segment (PNG benchmark)",
    "flmm_reasonseg": "the frozen model answers, its answer is grounded (F-LMM)",
    "lisa_reasonseg": "prompted for a mask, LISA's evaluation code",
    "glamm_gcg": "GLaMM's evaluation code",
    "viscot_judged": "answers judged by gpt-3.5-turbo-1106",
    "viscot_unjudged": "answers scored without a judge",
    "tiny_world": "pictures of the package's synthetic world, not the benchmark's: comparable with no published number",
    "own_words": "asked in the words that the embedded model was trained on",
    "png_keywords": "keywords of PNG narratives",
    "lmms_eval": "stock task of lmms-eval; the paper does not say which harness and prompts it used",
    "vlmevalkit": "stock data set of VLMEvalKit; the paper does not say which harness and prompts it used",
}

#: The paper's LMMs as printed, and patterns of hub ids, folders and harness names that mean them (in lower case,
#: underscores as dashes). The first match counts.
_LMMS: tuple[tuple[str, str], ...] = (
    ("DeepSeekVL-1.3B", r"deepseek-?vl.*1\.?3b"),
    ("DeepSeekVL-7B", r"deepseek-?vl.*7b"),
    ("MGM-HD-7B", r"(mgm|mini-?gemini).*(7b.*hd|hd.*7b)"),
    ("MGM-2B", r"(mgm|mini-?gemini).*2b"),
    ("MGM-7B", r"(mgm|mini-?gemini).*7b"),
    ("HPT-Air-1.5-8B", r"hpt.*1[.-]?5.*(8b|air)"),
    ("HPT-Air-6B", r"hpt.*(6b|air)|hypergai/hpt$"),
    ("LLaVA-1.6-M-7B", r"llava-?(next-?)?(v?1\.6|next).*mistral.*7b|llava-?(v?1\.6|next)-m-7b"),
    ("LLaVA-1.6-7B", r"llava-?(next-?)?(v?1\.6|next).*7b"),
    ("LLaVA-1.5-7B", r"llava-?v?1\.5.*7b"),
)

#: Key of an LMM in ``paper_numbers.csv`` -> its name as printed.
LMM_NAMES: Mapping[str, str] = {name.lower(): name for name, _ in _LMMS}


def lmm_key(*names: str) -> str:
    """Return the key of the paper's LMM that one of the names means, "" if none does.

    >>> lmm_key("llava-hf/llava-1.5-7b-hf")
    'llava-1.5-7b'
    >>> lmm_key("llava-hf/llava-v1.6-mistral-7b-hf"), lmm_key("Qwen/Qwen2.5-VL-7B-Instruct")
    ('llava-1.6-m-7b', '')
    """
    for name in names:
        plain = name.lower().replace("_", "-")
        for printed, pattern in _LMMS:
            if re.search(pattern, plain):
                return printed.lower()
    return ""


@dataclass(frozen=True)
class PaperNumber:
    """One number of one table.

    Attributes:
        table: ``1``, ``2``, ``3``, ``4``, ``5a``, ``5b``, ``6``, ``A1``, ``A2``, ``A3``, ``F6`` (Figure 6's table).
        group: ``ours`` (F-LMM and the models it is built on), ``grounding`` or ``specialised``.
        row: Name of the row, without its citation.
        variant: Second part of the name where two rows share the first: "visual CoT", "mask + box", ...
        backbone: Key of `LMM_NAMES`, "" for other people's models.
        column: Name of one of the layout's columns; MME's two numbers are two columns.
        value: The number as printed, e.g. ``75.0``.
        unit: One of ``percent``, ``points`` and ``rank``.
        protocol: How it was measured, a key of `PROTOCOLS`.
    """

    table: str
    group: str
    row: str
    variant: str
    backbone: str
    column: str
    value: str
    unit: str
    protocol: str
    source: str

    @property
    def number(self) -> float:
        """The value as a number, in ``unit``."""
        return float(self.value)


@cache
def read_numbers() -> tuple[PaperNumber, ...]:
    """Read all numbers, in the paper's order.

    Raises:
        DataNotFound: The file was left out of this installation.
    """
    file = resources.files("flmm_plugin.reports") / "paper_numbers.csv"
    if not file.is_file():
        raise DataNotFound("paper_numbers.csv is missing from flmm_plugin.reports; reinstall flmm-plugin")
    return tuple(PaperNumber(**line) for line in csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def numbers_of(table: str) -> tuple[PaperNumber, ...]:
    """Return the numbers of one table, in the paper's order."""
    return tuple(number for number in read_numbers() if number.table == table)
