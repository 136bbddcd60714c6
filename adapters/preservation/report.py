"""Write a verdict for readers: one line, a table, the first differing sample, JSON, JUnit XML."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from flmm_plugin import files
from flmm_plugin.adapters.preservation.verdict import Check, RunRecord, Verdict
from flmm_plugin.redaction import public, public_text

_WORD = {"unchanged": "CHAT UNCHANGED", "changed": "CHAT CHANGED", "uncomparable": "COULD NOT COMPARE"}
_COLUMN = 56


def line(verdict: Verdict) -> str:
    """Return the verdict in one line, its scope included."""
    stock, ours = verdict.runs[0], verdict.runs[1]
    tasks = ", ".join(sorted({answer.task for answer in stock.answers.values()})) or "no task"
    scope = f"{len(ours.answers)} requests of {tasks}, stock run {stock.adapter}"
    return public_text(f"{_WORD[verdict.status]} ({verdict.mode}): {verdict.reason} [{scope}]")


def table(verdict: Verdict) -> list[list[str]]:
    """Return a header, then one row per check; noise beside the comparison where it was measured."""
    columns = [("stock : F-LMM", verdict.checks)]
    if verdict.noise:
        columns.append(("stock : stock", verdict.noise))
    if verdict.same:
        columns.append(("same settings : F-LMM", verdict.same))
    if verdict.repeat and verdict.repeat != verdict.noise:
        columns.append(("same settings : again", verdict.repeat))
    rows = [["check", "compared", *(f"{name} differing" for name, _ in columns), "detail"]]
    for number, check in enumerate(verdict.checks):
        measured = [checks[number] for _, checks in columns]
        cells = [str(one.differing) if one.compared else "-" for one in measured]
        rows.append([check.name, str(check.compared), *cells, verdict.blamed[number].detail])
    return rows


def as_text(verdict: Verdict) -> str:
    """Return all of it for a terminal: line, table, notes, and if chat changed the first differing sample."""
    rows = table(verdict)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    parts = [line(verdict), "\n".join(lines), public_text("\n".join(f"- {note}" for note in verdict.notes))]
    if verdict.first is not None and not verdict.unchanged:
        parts.append(side_by_side(verdict.first))
    return "\n\n".join(part for part in parts if part)


def side_by_side(check: Check) -> str:
    """Return the first difference of a check in two columns, stock on the left; empty if there is none."""
    if check.first is None:
        return ""
    head = f"first difference: {check.name}, {check.first.where}"
    if check.first.question and check.name != "questions":
        head += f"\nquestion: {check.first.question!r}"
    left, right = (
        textwrap.wrap(text, _COLUMN, break_long_words=True, replace_whitespace=False) or [""]
        for text in (check.first.left, check.first.right)
    )
    height = max(len(left), len(right))
    left, right = (lines + [""] * (height - len(lines)) for lines in (left, right))
    body = [f"{a.ljust(_COLUMN)} | {b}".rstrip() for a, b in zip(["stock", *left], ["F-LMM", *right], strict=True)]
    return "\n".join([head, *body])


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as one JSON object for programs; the answers stay in the folders of the runs."""
    return {
        "status": verdict.status,
        "exit_status": verdict.exit_status,
        "mode": verdict.mode,
        "line": line(verdict),
        "reason": public_text(verdict.reason),
        "checks": [asdict(check) for check in verdict.checks],
        "noise": [asdict(check) for check in verdict.noise],
        "same_settings": [asdict(check) for check in verdict.same],
        "repetition": [asdict(check) for check in verdict.repeat],
        "notes": public(verdict.notes),
        "arms": [_run(run) for run in verdict.runs],
    }


def as_junit(verdict: Verdict) -> str:
    """Return JUnit XML: one case per check that is held against the plugin, one before and one after them all."""
    suite = ElementTree.Element("testsuite", name="flmm preserve")

    def case(name: str, outcome: str = "", message: str = "", text: str = "") -> None:
        one = ElementTree.SubElement(suite, "testcase", classname="flmm.preserve", name=name)
        if outcome:
            ElementTree.SubElement(one, outcome, message=_clean(message)).text = _clean(text)

    case("could be compared", "error" if verdict.status == "uncomparable" else "", verdict.reason)
    for check in verdict.blamed:
        if check.differing and not verdict.unchanged:
            message = f"{check.differing} of {check.compared} differ {check.detail}".strip()
            case(check.name, "failure", message, side_by_side(check))
        elif not check.compared:
            case(check.name, "skipped", check.detail or "nothing to compare")
        else:
            case(check.name)
    case("chat is unchanged", "failure" if verdict.status == "changed" else "", line(verdict))
    for count, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(count, str(sum(1 for _ in suite.iter(tag))))
    suite.set("time", f"{sum(run.seconds for run in verdict.runs):.3f}")
    ElementTree.SubElement(suite, "system-out").text = _clean(as_text(verdict))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def write_files(verdict: Verdict, folder: Path, junit: Path | None = None) -> None:
    """Write ``verdict.json`` and ``verdict.xml``, and JUnit XML to another place too if one is given."""
    files.write(folder / "verdict.json", json.dumps(as_json(verdict), indent=1) + "\n")
    for path in (folder / "verdict.xml", junit):
        if path is not None:
            files.write(path, as_junit(verdict))


def _run(run: RunRecord) -> dict[str, Any]:
    return {
        "role": run.role, "adapter": public_text(run.adapter), "settings": public(run.settings),
        "requests": len(run.answers),
        "metrics": {task: dict(values) for task, values in run.metrics.items()}, "tensors": len(run.weights),
        "weights_changed": list(run.weights_after), "grounded": dict(run.grounded), "judge": dict(run.judge),
        "provenance": public(run.provenance), "resumed": run.resumed, "seconds": run.seconds,
    }  # fmt: skip


def _clean(text: str) -> str:
    """Replace the control characters that XML cannot hold and a model may well say."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
