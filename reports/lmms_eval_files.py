"""lmms-eval's result files: ``*_results.json`` and the ``*_samples_<task>.jsonl`` beside it (lmms-eval 0.7)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flmm_plugin import files
from flmm_plugin.errors import DataNotFound
from flmm_plugin.public import public
from flmm_plugin.reports.provenance import Provenance, text
from flmm_plugin.reports.result_files import Run, TaskResult, named, sample_lines

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
    """The runs of one file, or of every result file under a folder.

    Raises:
        DataNotFound: A file of that name is not what lmms-eval writes.
    """
    files = sorted(path.rglob("*_results.json")) if path.is_dir() else [path] if path.suffix == ".json" else []
    for file in files:
        yield read_run(file)


def read_run(file: Path) -> Run:
    """One ``*_results.json``.

    Raises:
        DataNotFound: It is damaged, or not lmms-eval's.
    """
    content = files.read_json(file, DataNotFound, "run again, or leave it out")
    with named(file, "result file of lmms-eval"):
        return _run(content, file)


def _run(content: Mapping[str, Any], file: Path) -> Run:
    config, results = content["config"], content["results"]
    ours = content.get("flmm")
    record: Mapping[str, Any] = ours if isinstance(ours, Mapping) else {}
    arguments = _arguments(config.get("model_args"))
    model = str(config.get("model", ""))
    flmm = bool(record) or model.startswith("flmm_")
    options = public({**arguments, **recorded_options(record)})
    weights = arguments.get("pretrained") or text(record, "backbone") or model
    common = conditions(content, config, record, arguments, file)
    tasks = {}
    for task, values in results.items():
        metrics = metric_values(values)
        if metrics:
            tasks[task] = _task(task, metrics, content, common, file)
    return Run(
        path=file,
        harness="lmms-eval",
        model=model,
        weights=weights,
        flmm=flmm,
        options=options,
        tasks=tasks,
        date=str(content.get("date") or ""),
    )


def metric_values(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers alone: lmms-eval writes ``"metric,filter"`` keys beside aliases and standard errors.

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


def samples_file(results: Path, task: str) -> Path | None:
    """The log of a task's samples beside a result file; None if there is none."""
    path = results.with_name(f"{results.name.removesuffix('_results.json')}_samples_{task}.jsonl")
    return path if path.is_file() else None


def questions_hash(samples: Path) -> str:
    """SHA-256 over what was asked and what is right, document by document: equal for two runs asked the same.

    lmms-eval's own ``task_hashes`` cannot serve: its documents are gone by the time it hashes them, so all are equal.
    """
    digest = hashlib.sha256()
    for sample in sample_lines(samples):
        asked = [sample.get("doc_id"), sample.get("input"), sample.get("target")]
        digest.update(json.dumps(asked, ensure_ascii=False).encode(errors="surrogatepass"))
    return f"questions:{digest.hexdigest()[:16]}"


def _task(
    task: str, metrics: dict[str, float], content: Mapping[str, Any], common: Provenance, file: Path
) -> TaskResult:
    metadata = _metadata(content.get("configs", {}).get(task, {}))
    counts = content.get("n-samples", {}).get(task) or {}
    documents = counts.get("effective")
    items = metrics.get("items")
    n = int(items) if items is not None else documents
    official = OFFICIAL_DOCUMENTS.get(task)
    complete: bool | None
    if "complete" in metrics:
        complete = bool(metrics["complete"])
    elif official is not None:
        complete = documents == official
    else:
        complete = False if documents is not None and documents != counts.get("original", documents) else None
    samples = samples_file(file, task)
    data = short_hash(text(metadata, "annotations")) or (questions_hash(samples) if samples else "")
    provenance = Provenance(
        **{
            **dict(common.items()),
            "n": items_said(n, official, complete),
            "data": data,
            "judge": _judge(metadata, samples),
        },
    )
    return TaskResult(task, metrics, n, official, complete, metadata, provenance, samples)


def recorded_options(record: Mapping[str, Any]) -> dict[str, str]:
    """Options and facts about heads of the plugin's record, as a run has them."""
    return {**_texts("", record.get("options")), **_texts("heads.", record.get("heads"))}


def items_said(n: int | None, official: int | None, complete: bool | None) -> str:
    """How many items were scored, of how many, as tables say it; "" if unknown."""
    of = f" of {official}" if official is not None else ""
    return "" if n is None else f"{n}{of}{'' if complete is not False else ' (partial)'}"


def conditions(
    content: Mapping[str, Any],
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    arguments: Mapping[str, str],
    file: Path,
) -> Provenance:
    """Conditions of a run's numbers, from the plugin's record of it and what the file itself says.

    Args:
        content: The result file.
        config: Its ``config``.
        record: The plugin's record; empty for a stock adapter.
        arguments: Model arguments.
        file: Where the numbers stand.
    """
    versions = record.get("versions") or {}
    heads = record.get("heads") or {}
    harness = text(versions, "lmms_eval") or text(content, "lmms_eval_version")
    plugin = text(versions, "flmm_plugin")
    commit, _, changed = text(record, "commit").partition("-")
    short_commit = commit[:12] + (f"-{changed}" if changed else "")
    return Provenance(
        commit=" ".join(part for part in (plugin, short_commit) if part),
        harness="lmms-eval" + ("" if not harness or harness.startswith("unknown") else f" {harness}"),
        torch=text(versions, "torch"),
        transformers=text(versions, "transformers"),
        kernel=text(record, "kernel") or arguments.get("attn_implementation", ""),
        dtype=(text(record, "dtype") or arguments.get("dtype", "")).removeprefix("torch."),
        batch_size=text(record, "batch_size") or text(config, "batch_size"),
        device=text(record, "device") or text(config, "device") or arguments.get("device", ""),
        processes=text(record, "processes"),
        seed="/".join(str(config[name]) for name in ("random_seed", "numpy_seed", "torch_seed") if name in config),
        heads=text(heads, "sha256")[:16],
        date=str(content.get("date") or ""),
        file=file.name,
    )


def _judge(metadata: Mapping[str, Any], samples: Path | None) -> str:
    """Who judged: the task's metadata say, or the verdicts in the sample log do.

    lmms-eval copies the metadata before the first answer; a judge that a task finds later stands in the log alone.
    """
    judge = metadata.get("judge") or metadata.get("gpt_eval_model_name")
    if judge is None and samples is not None:
        judge = _judge_of_samples(samples)
    return "" if judge in (None, "none") else str(judge)


def _judge_of_samples(samples: Path) -> str | None:
    for sample in sample_lines(samples):
        verdict = sample.get("judged")
        if isinstance(verdict, Mapping) and verdict.get("model"):
            said = [str(verdict["model"]), f"prompt {verdict.get('prompt')}", str(verdict.get("date", ""))[:10]]
            return ", ".join(part for part in said if part)
    return None


def short_hash(digest: str) -> str:
    """A hash with its kind, as tables say it: the first 16 of its digits."""
    kind, colon, value = digest.partition(":")
    return f"{kind}:{value[:16]}" if colon else kind[:16]


def _texts(prefix: str, record: Any) -> dict[str, str]:
    """What a part of the plugin's record says, as text, under prefixed names."""
    said = record if isinstance(record, Mapping) else {}
    return {f"{prefix}{name}": str(value) for name, value in said.items() if value is not None}


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """A task's metadata; stock tasks write it as a list of mappings."""
    listed = config.get("metadata") or {}
    merged: dict[str, Any] = {}
    for part in listed if isinstance(listed, list) else [listed]:
        if isinstance(part, Mapping):
            merged.update(part)
    return merged


def _arguments(said: Any) -> dict[str, str]:
    """``--model_args`` as a mapping, whether lmms-eval kept it as text or as a mapping.

    >>> _arguments("pretrained=a/b,device=cpu")
    {'pretrained': 'a/b', 'device': 'cpu'}
    """
    if isinstance(said, Mapping):
        return {str(name): str(value) for name, value in said.items() if value is not None}
    pairs = (part.partition("=") for part in str(said or "").split(","))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}
