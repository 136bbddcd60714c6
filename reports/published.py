"""The paper's printed numbers, one per line of ``published.csv``, exactly as printed.

Source of every line: *F-LMM: Grounding Frozen Large Multimodal Models*, arXiv 2406.05821; the table is in the line. A
dash in the paper is no line. ``protocol`` names how the number was measured where that is known (`PROTOCOLS`); it is
empty where the paper does not say.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from flmm_plugin.errors import DataNotFound

#: What a protocol id of ``published.csv`` and of the layouts means; these sentences are printed below tables.
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


@dataclass(frozen=True)
class PublishedNumber:
    """One number of one table.

    Attributes:
        table: ``1``, ``2``, ``3``, ``4``, ``5a``, ``5b``, ``6``, ``A1``, ``A2``, ``A3``, ``F6`` (Figure 6's table).
        group: ``ours`` (F-LMM and the models it is built on), ``grounding`` or ``specialised``.
        row: The row's name, without citation.
        variant: What tells two rows of one name apart: "visual CoT", "mask + box", ...
        backbone: Key of the LMM (`flmm_plugin.reports.backbone_names`), "" for other people's models.
        column: One of the layout's columns; MME's two numbers are two columns.
        value: As printed.
        unit: ``percent``, ``points`` or ``rank``.
        protocol: A key of `PROTOCOLS`.
        source: Where it is printed.
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
def read_published() -> tuple[PublishedNumber, ...]:
    """All numbers, in the paper's order.

    Raises:
        DataNotFound: The file was left out of this installation.
    """
    file = resources.files("flmm_plugin.reports") / "published.csv"
    if not file.is_file():
        raise DataNotFound("published.csv is missing from flmm_plugin.reports; reinstall flmm-plugin")
    return tuple(PublishedNumber(**line) for line in csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def published_of(table: str) -> tuple[PublishedNumber, ...]:
    """The numbers of one table, in the paper's order."""
    return tuple(number for number in read_published() if number.table == table)
