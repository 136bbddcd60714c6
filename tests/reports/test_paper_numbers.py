"""The paper's numbers: complete, consistent among its own tables, and with a protocol that the code knows."""

from __future__ import annotations

from collections import Counter

import pytest

from flmm_plugin.reports.paper_numbers import LMM_NAMES, PROTOCOLS, lmm_key, numbers_of, read_numbers
from flmm_plugin.reports.table_layouts import LAYOUTS

#: Numbers that are no dash, counted in the paper's tables by hand, table by table (MME's cells hold two).
PRINTED_NUMBERS = {
    "1": 172, "2": 24, "3": 34, "4": 23, "5a": 12, "5b": 9, "6": 6, "A1": 145, "A2": 157, "A3": 85, "F6": 20,
}  # fmt: skip


def test_every_number_of_every_table() -> None:
    assert Counter(one.table for one in read_numbers()) == PRINTED_NUMBERS


def test_each_stands_once_in_a_known_column_by_a_known_protocol() -> None:
    numbers = read_numbers()
    assert len({(one.table, one.group, one.row, one.variant, one.column) for one in numbers}) == len(numbers)
    for one in numbers:
        assert one.protocol in PROTOCOLS
        assert one.number >= 0
        assert one.source.startswith("arXiv 2406.05821, ")
        if one.table != "F6":
            assert LAYOUTS[one.table].column(one.column).name == one.column


@pytest.mark.parametrize(("main", "detail"), [("1", "A1"), ("1", "A2"), ("1", "A3")])
def test_main_table_agrees_with_the_appendix(main: str, detail: str) -> None:
    """The paper prints F-LMM's numbers twice; a slip of the pen in either copy would show."""
    ours = {(one.backbone, one.column): one.value for one in numbers_of(main) if one.backbone}
    again = {(one.backbone, one.column): one.value for one in numbers_of(detail) if one.backbone}
    shared = ours.keys() & again.keys()
    assert len(shared) >= 30
    assert {key: ours[key] for key in shared} == {key: again[key] for key in shared}


def test_ablations_end_where_the_main_table_starts() -> None:
    full = [{one.column: one.value for one in numbers_of(table) if one.variant == variant}
            for table, variant in (("5a", "mask + box + text"), ("5b", "SAM ViT-L"))]  # fmt: skip
    main = {one.column: one.value for one in numbers_of("1") if one.backbone == "deepseekvl-1.3b"}
    assert full[0] == full[1] == {column: main[column] for column in full[0]}


@pytest.mark.parametrize("printed", LMM_NAMES.values())
def test_a_printed_name_is_known_again(printed: str) -> None:
    assert LMM_NAMES[lmm_key(printed)] == printed


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("deepseek-ai/deepseek-vl-1.3b-chat", "deepseekvl-1.3b"),
        ("deepseek-community/deepseek-vl-7b-chat", "deepseekvl-7b"),
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b"),
        ("liuhaotian/llava-v1.5-7b", "llava-1.5-7b"),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-1.6-7b"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", "llava-1.6-m-7b"),
        ("YanweiLi/MGM-7B-HD", "mgm-hd-7b"),
        ("YanweiLi/MGM-2B", "mgm-2b"),
        ("HyperGAI/HPT1_5-Air-Llama-3-8B-Instruct-multimodal", "hpt-air-1.5-8b"),
        ("HyperGAI/HPT", "hpt-air-6b"),
        ("llava-hf/llava-1.5-13b-hf", ""),
        ("flmm_tiny", ""),
    ],
)
def test_checkpoints_by_their_hub_names(name: str, key: str) -> None:
    assert lmm_key(name) == key
