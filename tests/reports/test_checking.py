"""Written tables say what result files say: every format reads back, and a number nobody measured is named."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from flmm_plugin.errors import DataNotFound, UnknownArgument
from flmm_plugin.reports.checking import gaps, read_table, unsupported
from flmm_plugin.reports.comparison import ComparisonTable, compare
from flmm_plugin.reports.rendering import FORMATS, frame, render
from flmm_plugin.reports.result_files import read_results
from flmm_plugin.reports.table_layouts import LAYOUTS

LLAVA = "pretrained=llava-hf/llava-1.5-7b-hf"
ODD = "pretrained=some_|_folder/<b>&50%_$x{y}*z*,heads=a"


@pytest.fixture
def tables(write_run: Callable[..., Path]) -> list[ComparisonTable]:
    whole = {"cIoU": 75.3, "items": 3811, "complete": 1}
    odd = {"flmm_refcoco_val": {**whole, "cIoU": 12.3}, "flmm_png": {"AR": 33.0}}
    runs = read_results(
        [
            write_run("a", "flmm_llava", {"flmm_refcoco_val": whole}, arguments=LLAVA, record={}),
            write_run("b", "flmm_llava", odd, arguments=ODD, record={}),
        ]
    )
    return [compare(LAYOUTS[name], runs) for name in ("1", "A2", "A3")]


@pytest.mark.parametrize("form", FORMATS)
def test_every_number_of_every_format_reads_back(tables: list[ComparisonTable], tmp_path: Path, form: str) -> None:
    path = tmp_path / f"tables.{form}"
    path.write_text(render(tables, form), encoding="utf-8")
    shown = {(one.table, one.group, one.row, one.column, one.text) for one in read_table(path)}
    expected = {
        (table.layout.table, row.group, row.name, cell.column.name, cell.text)
        for table in tables for row in table.rows for cell in row.cells if cell.value is not None
    }  # fmt: skip
    assert shown == expected
    assert unsupported(read_table(path), tables) == []


@pytest.mark.parametrize(
    ("form", "old", "new"),
    [
        ("md", "| 12.3 ", "| 62.3 "),
        ("latex", "12.3", "62.3"),
        ("html", ">12.3<", ">62.3<"),
        ("csv", ",12.3,", ",62.3,"),
    ],
)
def test_a_planted_number_is_named(
    tables: list[ComparisonTable], tmp_path: Path, form: str, old: str, new: str
) -> None:
    text = render(tables, form)
    assert old in text
    path = tmp_path / "t"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    found = unsupported(read_table(path), tables)
    assert len(found) == 1
    assert (found[0].shown, found[0].column) == ("62.3", "RefCOCO val")
    assert "is supported by no result file: they give 12.3" in str(found[0])


def test_planted_rows_columns_and_published_numbers_are_named(tables: list[ComparisonTable], tmp_path: Path) -> None:
    text = render(tables, "md")
    rows = text.splitlines()
    at = next(place for place, line in enumerate(rows) if line.startswith("| F-LMM (LLaVA-1.5-7B) | -"))
    rows.insert(at, rows[at].replace("F-LMM (LLaVA-1.5-7B)", "F-LMM (LLaVA-9)"))  # a model that nobody ran
    rows[at + 1] = rows[at + 1].replace("| - |", "| 99 |", 1)  # a number where there is none
    path = tmp_path / "t.md"
    path.write_text("\n".join(rows).replace("1511", "1512"), encoding="utf-8")  # one of the paper's, mistyped
    said = [str(one) for one in unsupported(read_table(path), tables)]
    assert len(said) == 3
    assert any("LLaVA-9" in one and "no run given here makes this row" in one for one in said)
    assert any("MME perception: 99" in one and "have no number there" in one for one in said)
    assert any("1512" in one and "they give 1511" in one for one in said)


def test_gaps_name_what_no_run_reproduces(tables: list[ComparisonTable]) -> None:
    lacking = {(gap.row, gap.column) for gap in gaps(tables[1])}
    assert ("LLaVA-1.5-7B", "RefCOCO val") not in lacking
    assert ("LLaVA-1.5-7B", "RefCOCO testA") in lacking
    assert ("MGM-2B", "RefCOCO val") in lacking
    assert not any(row == "LISA-7B" for row, _ in lacking)


def test_an_ablation_supports_its_own_variant_alone(write_run: Callable[..., Path]) -> None:
    heads = {"sha256": "a", "sam": "vit_l", "prompts": "mask"}
    where = "pretrained=deepseek-ai/deepseek-vl-1.3b-chat"
    png = {"flmm_png": {"AR": 63.4, "AR_thing": 62.0, "AR_stuff": 66.8, "complete": 1}}
    run = write_run("a", "flmm_deepseekvl", png, arguments=where, record={"heads": heads})
    lacking = {gap.row for gap in gaps(compare(LAYOUTS["5a"], read_results([run])))}
    assert lacking == {"F-LMM, no refiner", "F-LMM, mask + box", "F-LMM, mask + box + text"}


def test_a_partial_number_supports_nothing(write_run: Callable[..., Path]) -> None:
    part = {"cIoU": 75.2, "items": 8, "complete": 0}
    run = write_run("a", "flmm_llava", {"flmm_refcoco_val": part}, arguments="pretrained=llava-1.5-7b", record={})
    found = {(gap.row, gap.column): gap.why for gap in gaps(compare(LAYOUTS["A2"], read_results([run])))}
    assert "not the whole official split" in found["LLaVA-1.5-7B", "RefCOCO val"]


def test_csv_carries_provenance_with_every_measured_number(tables: list[ComparisonTable]) -> None:
    lines = list(csv.DictReader(io.StringIO(render(tables, "csv"))))
    measured = [line for line in lines if line["group"] == "Measured"]
    assert len(measured) == 6
    for line in measured:
        assert line["kernel"] == "sdpa"
        assert line["heads"] == "feedfacefeedface"
        assert line["file"].endswith("_results.json")
        assert line["commit"] == "0.1.0 0123456789ab"
    wide = frame(tables[:1]).pivot(index=["group", "row"], columns="column", values="value")
    assert wide.loc[("Published: F-LMM", "F-LMM (MGM-2B)"), "RefCOCO val"] == "75.0"


def test_html_escapes_whatever_a_model_is_called(tables: list[ComparisonTable]) -> None:
    text = render(tables, "html")
    assert "<b>&50%" not in text
    assert "&lt;b&gt;&amp;50%" in text


def test_files_that_hold_no_table(tmp_path: Path, tables: list[ComparisonTable]) -> None:
    (tmp_path / "x.md").write_text("# nothing\n| a | b |\n|---|---|\n| c | 1 |\n")
    with pytest.raises(DataNotFound, match="holds"):
        read_table(tmp_path / "x.md")
    with pytest.raises(DataNotFound, match="write"):
        read_table(tmp_path / "absent.md")
    with pytest.raises(UnknownArgument, match="pdf"):
        render(tables, "pdf")
