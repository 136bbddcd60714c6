"""A preservation verdict for readers: one line, a table, the first differing sample, JSON, JUnit XML."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from flmm_plugin import files
from flmm_plugin.public import public, public_text
from flmm_plugin.reports.preservation import Arm, Check, Verdict

_WORD = {"unchanged": "CHAT UNCHANGED", "changed": "CHAT CHANGED", "uncomparable": "COULD NOT COMPARE"}
_COLUMN = 56


def line(verdict: Verdict) -> str:
    """The verdict in one line, its scope included."""
    stock, ours = verdict.arms[0], verdict.arms[1]
    tasks = ", ".join(sorted({answer.task for answer in stock.answers.values()})) or "no task"
    scope = f"{len(ours.answers)} requests of {tasks}, stock arm {stock.adapter}"
    return public_text(f"{_WORD[verdict.status]} ({verdict.mode}): {verdict.reason} [{scope}]")


def table(verdict: Verdict) -> list[list[str]]:
    """A header, then one row per check; noise beside the comparison where it was measured."""
    columns = [("stock : F-LMM", verdict.checks)]
    if verdict.noise:
        columns.append(("stock : stock", verdict.noise))
    if verdict.same:
        columns.append(("same settings : F-LMM", verdict.same))
    if verdict.repeat and verdict.repeat != verdict.noise:
        columns.append(("same settings : again", verdict.repeat))
    rows = [["check", "compared", *(f"{name} differing" for name, _ in columns), "detail"]]
    for number, check in enumerate(verdict.checks):
        cells = [_differing(checks[number]) for _, checks in columns]
        rows.append([check.name, str(check.compared), *cells, verdict.blamed[number].detail])
    return rows


def as_text(verdict: Verdict) -> str:
    """All of it for a terminal: line, table, notes, and if chat changed the first differing sample side by side."""
    rows = table(verdict)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    parts = [line(verdict), "\n".join(lines), public_text("\n".join(f"- {note}" for note in verdict.notes))]
    if verdict.first is not None and not verdict.unchanged:
        parts.append(side_by_side(verdict.first))
    return "\n\n".join(part for part in parts if part)


def side_by_side(check: Check) -> str:
    """The first difference of a check, stock on the left."""
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
    """The verdict as one object: what a program reads; answers themselves stay in the arms' folders."""
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
        "arms": [_arm(arm) for arm in verdict.arms],
    }


def as_junit(verdict: Verdict) -> str:
    """JUnit XML: one case per check that is held against the plugin, one before and one after them all."""
    suite = ElementTree.Element("testsuite", name="flmm preserve", errors="0", skipped="0")
    cases = 0
    wrong = 0

    def case(name: str) -> ElementTree.Element:
        nonlocal cases
        cases += 1
        return ElementTree.SubElement(suite, "testcase", classname="flmm.preserve", name=name)

    comparable = case("could be compared")
    if verdict.status == "uncomparable":
        ElementTree.SubElement(comparable, "error", message=_clean(verdict.reason))
        suite.set("errors", "1")
    skipped = 0
    for check in verdict.blamed:
        one = case(check.name)
        if check.differing and not verdict.unchanged:
            wrong += 1
            failure = ElementTree.SubElement(
                one, "failure", message=f"{check.differing} of {check.compared} differ {_clean(check.detail)}".strip()
            )
            failure.text = _clean(side_by_side(check))
        elif not check.compared:
            skipped += 1
            ElementTree.SubElement(one, "skipped", message=_clean(check.detail) or "nothing to compare")
    whole = case("chat is unchanged")
    if verdict.status == "changed":
        wrong += 1
        ElementTree.SubElement(whole, "failure", message=_clean(line(verdict)))
    suite.set("tests", str(cases))
    suite.set("failures", str(wrong))
    suite.set("skipped", str(skipped))
    suite.set("time", f"{sum(arm.seconds for arm in verdict.arms):.3f}")
    notes = ElementTree.SubElement(suite, "system-out")
    notes.text = _clean(as_text(verdict))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _differing(check: Check) -> str:
    return str(check.differing) if check.compared else "-"


def _arm(arm: Arm) -> dict[str, Any]:
    return {
        "role": arm.role, "adapter": public_text(arm.adapter), "settings": public(arm.settings),
        "requests": len(arm.answers),
        "metrics": {task: dict(values) for task, values in arm.metrics.items()}, "tensors": len(arm.weights),
        "weights_changed": list(arm.weights_after), "grounded": dict(arm.grounded), "judge": dict(arm.judge),
        "provenance": public(arm.provenance), "resumed": arm.resumed, "seconds": arm.seconds,
    }  # fmt: skip


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold and a model may well say."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def write_files(verdict: Verdict, paths: Sequence[tuple[str, Any]]) -> None:
    """Write the verdict into files: pairs of ``json`` or ``junit`` and a path; a None path is left out."""
    for kind, path in paths:
        if path is not None:
            content = as_junit(verdict) if kind == "junit" else json.dumps(as_json(verdict), indent=1) + "\n"
            files.write(path, content)
