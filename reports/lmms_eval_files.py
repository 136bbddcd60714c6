"""Read lmms-eval's result files: ``*_results.json`` and the ``*_samples_<task>.jsonl`` beside it (lmms-eval 0.7)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flmm_plugin.errors import DataNotFound
from flmm_plugin.files import read_json
from flmm_plugin.redaction import public
from flmm_plugin.reports.runs import (
    Provenance,
    Run,
    TaskResult,
    items_scored,
    named,
    plugin_conditions,
    plugin_options,
    sample_lines,
    short_hash,
    text,
)

#: Documents of stock tasks' official splits, as lmms-eval loads them; mask tasks count theirs themselves.
OFFICIAL_DOCUMENTS: Mapping[str, int] = {
    "mme": 2374,
    "mmbench_en_dev": 4329,
    "mmvet": 218,
    "llava_in_the_wild": 60,
    "pope": 9000,
    "flmm_pope_direct": 9000,
    "flmm_pope_viscot": 9000,
    "flmm_pope_viscot_v2": 9000,
    "gqa": 12578,
    "vqav2_val": 214354,
    "ai2d": 3088,
}


def read(path: Path) -> Iterator[Run]:
    """Read one result file, or every result file under a folder.

    Raises:
        DataNotFound: A file of that name is not what lmms-eval writes.
    """
    if path.is_dir():
        yield from map(read_run, sorted(path.rglob("*_results.json")))
    elif path.suffix == ".json":
        yield read_run(path)


def read_run(file: Path) -> Run:
    """Read one ``*_results.json``.

    Raises:
        DataNotFound: It is damaged, or not lmms-eval's.
    """
    content = read_json(file, DataNotFound, "run again, or leave it out")
    with named(file, "result file of lmms-eval"):
        return _run(content, file)


def _run(content: Mapping[str, Any], file: Path) -> Run:
    config, results = content["config"], content["results"]
    record = content.get("flmm")
    if not isinstance(record, Mapping):
        record = {}
    arguments = _arguments(config.get("model_args"))
    model = str(config.get("model", ""))
    conditions = _conditions(content, record, arguments, file)
    numbers = {task: metric_values(values) for task, values in results.items()}
    return Run(
        path=file,
        harness="lmms-eval",
        model=model,
        weights=arguments.get("pretrained") or text(record, "backbone") or model,
        flmm=bool(record) or model.startswith("flmm_"),
        options=public({**arguments, **plugin_options(record)}),
        tasks={task: _task(task, found, content, conditions, file) for task, found in numbers.items() if found},
        date=conditions.date,
    )


def _conditions(
    content: Mapping[str, Any], record: Mapping[str, Any], arguments: Mapping[str, str], file: Path
) -> Provenance:
    """Return conditions of all numbers of a run: as the plugin recorded them, else as the file's own parts say."""
    config = content["config"]
    harness = text(record.get("versions") or {}, "lmms_eval") or text(content, "lmms_eval_version")
    known = {name: value for name, value in plugin_conditions(record).items() if value}
    by_harness = {
        "harness": "lmms-eval" if not harness or harness.startswith("unknown") else f"lmms-eval {harness}",
        "kernel": arguments.get("attn_implementation", ""),
        "dtype": arguments.get("dtype", "").removeprefix("torch."),
        "batch_size": text(config, "batch_size"),
        "device": text(config, "device") or arguments.get("device", ""),
        "seed": "/".join(str(config[name]) for name in ("random_seed", "numpy_seed", "torch_seed") if name in config),
        "date": str(content.get("date") or ""),
        "file": file.name,
    }
    return Provenance(**{**by_harness, **known})


def metric_values(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a task: lmms-eval writes ``"metric,filter"`` keys beside aliases and standard errors.

    Of several filters of one metric the unfiltered one (``none``) counts, else the first.

    >>> metric_values({"alias": "x", "cIoU,none": 75.5, "cIoU_stderr,none": "N/A", "complete,none": 0})
    {'cIoU': 75.5, 'complete': 0.0}
    """
    found: dict[str, float] = {}
    for key, value in values.items():
        name, comma, filter_name = key.partition(",")
        if not comma or "_stderr" in name or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name not in found or filter_name == "none":
            found[name] = float(value)
    return found


def _task(
    task: str, metrics: dict[str, float], content: Mapping[str, Any], conditions: Provenance, file: Path
) -> TaskResult:
    metadata = _metadata(content.get("configs", {}).get(task, {}))
    counts = content.get("n-samples", {}).get(task) or {}
    documents, items = counts.get("effective"), metrics.get("items")
    n = documents if items is None else int(items)
    official = OFFICIAL_DOCUMENTS.get(task)
    complete: bool | None = None
    if "complete" in metrics:
        complete = bool(metrics["complete"])
    elif official is not None:
        complete = documents == official
    elif documents is not None and documents != counts.get("original", documents):
        complete = False
    log = file.with_name(f"{file.name.removesuffix('_results.json')}_samples_{task}.jsonl")
    samples = log if log.is_file() else None
    provenance = replace(
        conditions,
        n=items_scored(n, official, complete),
        data=short_hash(text(metadata, "annotations")) or (_questions_hash(samples) if samples else ""),
        judge=_judge(metadata, samples),
    )
    return TaskResult(task, metrics, n, official, complete, metadata, provenance, samples)


def _questions_hash(samples: Path) -> str:
    """Return a SHA-256 over questions and targets, document by document: equal for two runs asked the same.

    lmms-eval's own ``task_hashes`` cannot serve: its documents are gone by the time it hashes them, so all are equal.
    """
    digest = hashlib.sha256()
    for sample in sample_lines(samples):
        asked = [sample.get("doc_id"), sample.get("input"), sample.get("target")]
        digest.update(json.dumps(asked, ensure_ascii=False).encode(errors="surrogatepass"))
    return f"questions:{digest.hexdigest()[:16]}"


def _judge(metadata: Mapping[str, Any], samples: Path | None) -> str:
    """Name the judge, from the task's metadata or from the verdicts in the sample log.

    lmms-eval copies the metadata before the first answer; a judge that a task finds later stands in the log alone.
    """
    judge = metadata.get("judge") or metadata.get("gpt_eval_model_name")
    if judge is not None or samples is None:
        return "" if judge in (None, "none") else str(judge)
    for sample in sample_lines(samples):
        verdict = sample.get("judged")
        if isinstance(verdict, Mapping) and verdict.get("model"):
            parts = [str(verdict["model"]), f"prompt {verdict.get('prompt')}", str(verdict.get("date", ""))[:10]]
            return ", ".join(part for part in parts if part)
    return ""


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's metadata as one mapping; stock tasks write a list of mappings."""
    listed = config.get("metadata") or {}
    merged: dict[str, Any] = {}
    for part in listed if isinstance(listed, list) else [listed]:
        if isinstance(part, Mapping):
            merged.update(part)
    return merged


def _arguments(written: Any) -> dict[str, str]:
    """Return ``--model_args`` as a mapping, whether lmms-eval kept it as text or as a mapping.

    >>> _arguments("pretrained=a/b,device=cpu")
    {'pretrained': 'a/b', 'device': 'cpu'}
    """
    if isinstance(written, Mapping):
        return {str(name): str(value) for name, value in written.items() if value is not None}
    pairs = (part.partition("=") for part in str(written or "").split(","))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}
