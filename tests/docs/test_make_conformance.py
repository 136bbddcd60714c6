"""The conformance table comes from a report of pytest, and keeps what other versions passed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from flmm_plugin.errors import DataNotFound
from flmm_plugin.verification import Triple, Verified, read_records

ROOT = Path(__file__).resolve().parents[2]
NEW, OLD = Triple("5.23.0", "2.15.0", "sdpa"), Triple("5.0.0", "2.15.0", "sdpa")
REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase name="test_facts[llava]"/><testcase name="test_facts[llava_next]"/>
<testcase name="test_a_painted_rectangle[llava-wide]"/>
<testcase name="test_a_painted_rectangle[llava-tall]"/>
<testcase name="test_a_painted_rectangle[wide-llava_next]"><failure message="x">y</failure></testcase>
<testcase name="test_read_back[True-llava]"/><testcase name="test_read_back[False-llava]"><skipped/></testcase>
<testcase name="test_of_something_else[7]"/><testcase name="test_without_parameters"/>
</testsuite></testsuites>"""


@pytest.fixture
def script(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(script, "ROOT", tmp_path)
    for name in ("CSV", "PAGE", "RECORDS"):
        monkeypatch.setattr(script, name, tmp_path / getattr(script, name).name)
    script.PAGE.write_text(f"# Page\n{script.BEGIN}\nold\n{script.END}\nrest\n")
    return script


def test_cases_are_counted_by_family_and_check(script: ModuleType) -> None:
    rows = {(row["family"], row["check"]): row for row in script.rows_of(REPORT, NEW)}
    assert len(rows) == 5
    assert rows["llava", "a painted rectangle"]["passed"] == "2"
    assert rows["llava_next", "a painted rectangle"]["failed"] == "1"
    assert (rows["llava", "read back"]["passed"], rows["llava", "read back"]["skipped"]) == ("1", "1")
    with pytest.raises(DataNotFound, match="no test of a family"):
        script.rows_of("<testsuites/>", NEW)


def test_csv_page_and_records_are_written_and_versions_stay_apart(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    versions = {"transformers": "5.23.0", "torch": "2.15.0"}
    monkeypatch.setattr(script, "_version", lambda name: versions[name])
    assert script.main(["--junit", str(report)]) == 1
    assert "llava_next: a painted rectangle failed with transformers 5.23.0" in capsys.readouterr().err
    assert read_records(script.RECORDS).triples == (Verified("llava", NEW, 4),)
    page = script.PAGE.read_text()
    assert page.startswith("# Page\n")
    assert page.endswith("\nrest\n")
    assert "old" not in page
    assert "| family | a painted rectangle | facts | read back |" in page
    assert "| llava | 2 passed | 1 passed | 1 passed, 1 skipped |" in page
    assert "| llava_next | **1 of 1 failed** | 1 passed |  |" in page

    versions["transformers"] = "5.0.0"
    report.write_text(REPORT.replace('<failure message="x">y</failure>', ""))
    script.main(["--junit", str(report)])
    versions["transformers"] = "5.23.0"
    script.main(["--junit", str(report)])
    rows = script.read_csv(script.CSV)
    assert len(rows) == 10
    assert rows[0]["transformers"] == "5.0.0"
    assert set(read_records(script.RECORDS).triples) == {
        Verified(family, triple, passed)
        for triple in (NEW, OLD)
        for family, passed in (("llava", 4), ("llava_next", 2))
    }
    page = script.PAGE.read_text()
    assert page.index("transformers 5.0.0") < page.index("transformers 5.23.0")
    assert "failed" not in page
    assert script.main(["--render"]) == 0
    assert script.PAGE.read_text() == page


def test_fingerprints_are_left_alone(script: ModuleType) -> None:
    records = read_records(ROOT / "flmm_plugin" / "verified.json")
    assert script.verified(records, []).fingerprints == records.fingerprints


def test_the_committed_page_is_that_of_the_committed_csv(script: ModuleType) -> None:
    rows = script.read_csv(ROOT / "docs" / "results" / "conformance.csv")
    assert rows
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert script.between_marks(page, script.table(rows)) == page
    assert not [row for row in rows if int(row["failed"])]
    triples = json.loads((ROOT / "flmm_plugin" / "verified.json").read_text(encoding="utf-8"))["triples"]
    assert len(triples) == len({(row["transformers"], row["torch"], row["kernel"], row["family"]) for row in rows})


def test_a_page_without_marks_and_a_report_that_is_not_there(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="needs the lines"):
        script.between_marks("nothing", "table")
    with pytest.raises(DataNotFound, match="--junitxml"):
        script.report(tmp_path / "none.xml")
