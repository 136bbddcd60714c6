"""Wrap the kit's inference of one data set by a model of this package: nothing is lost, stale or mixed up.

- Answers are journalled one by one, so a kill loses none (`run_files`); the kit's own partial files are not used.
- Every row of a result file names what decided its answer. Answers of another model, of other options or to other data
  are not continued: that is an error, before anything is asked.
- Before a new answer is given, files in which the kit keeps judgements of older answers are removed.
- The record of how the model was loaded stands beside the results, and the seal on its weights is checked.
- Of several processes, all go on or none does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from flmm_plugin.adapters.answering.identity import answer_facts
from flmm_plugin.adapters.vlmevalkit import messages, outcomes, predictions
from flmm_plugin.adapters.vlmevalkit.command_line import unknown
from flmm_plugin.adapters.vlmevalkit.run_files import KEY, DataSetRun
from flmm_plugin.errors import FlmmError, FrozenWeightsChanged, UnknownArgument


class ProcessFailed(FlmmError):
    """Another process of this run failed, so none of them goes on; the message says which and why."""


def journalled(
    infer_data: Callable[..., Any],
    model: Any,
    model_name: str,
    work_dir: str,
    dataset: Any,
    out_file: str,
    **options: Any,
) -> Any:
    """Call the kit's ``infer_data`` with all of the above; models of others pass through unchanged."""
    from vlmeval.config import supported_VLM

    if isinstance(model, str) and model not in supported_VLM:
        raise UnknownArgument(unknown("model", model, supported_VLM))
    rest = {"model_name": model_name, "work_dir": work_dir, "dataset": dataset, "out_file": out_file, **options}
    if not _is_ours(model):
        return infer_data(model=model, **rest)

    def answered() -> tuple[Any, DataSetRun, dict[str, str]]:
        one = _built(supported_VLM[model], options) if isinstance(model, str) else model
        facts = answer_facts(one, grounds=one.get_ready(dataset))
        run = DataSetRun(Path(work_dir), model_name, str(dataset.dataset_name), facts)
        dataset.build_prompt = _forgiving(dataset.build_prompt)
        result, keys, journal = _result(work_dir, model_name, dataset), run.keys(dataset), run.journal()
        if not set(keys) <= run.held(result, dataset.data["index"], keys, journal):
            run.remove_stale()
        run.drop_partial_files(result)
        one.journal = journal
        try:
            infer_data(model=one, **rest)
            one.finished(run.data)
        except FrozenWeightsChanged:
            Path(out_file).unlink(missing_ok=True)
            run.forget()
            raise
        finally:
            one.journal = None
        logger.info(f"flmm: {run.data}: {journal.found} answers from disk, {journal.added} new")
        return one, run, keys

    one, run, keys = _together(answered)
    for others in _gathered(keys):
        keys.update(others)
    dataset.data = dataset.data.assign(**{KEY: [keys[str(index)] for index in dataset.data["index"]]})
    run.record(one.provenance, one.arguments)
    dataset.flmm_run = run
    return one


def delivered(
    infer_data_job: Callable[..., Any], model: Any, work_dir: str, model_name: str, dataset: Any, **options: Any
) -> Any:
    """Call ``infer_data_job``: journals are kept until the result file is there, and all know of failures."""
    rest = {"work_dir": work_dir, "model_name": model_name, "dataset": dataset, **options}
    if not _is_ours(model):
        return infer_data_job(model, **rest)

    def done() -> Any:
        result = _result(work_dir, model_name, dataset)
        if result.is_file():
            predictions.read(result)  # what cannot be read stops all processes, not the first one alone
        try:
            return infer_data_job(model, **rest)
        except Exception:
            if hasattr(dataset, "flmm_run") and _several():
                import torch.distributed as dist

                dist.barrier()  # all have answered, and the others wait for the file that this one writes
            raise

    try:
        one = _together(done)
    except Exception as exc:
        problem = str(exc) or type(exc).__name__
        outcomes.note(model_name=model_name, dataset_name=dataset.dataset_name, status="done", error_message=problem)
        raise
    dataset.flmm_run.forget()
    return one


def _is_ours(model: Any) -> bool:
    from vlmeval.config import supported_VLM

    from flmm_plugin.adapters.vlmevalkit.model import FLMM

    entry = supported_VLM.get(model) if isinstance(model, str) else type(model)
    made_by = getattr(entry, "func", entry)
    return isinstance(made_by, type) and issubclass(made_by, FLMM)


def _built(make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Make a model, with the number of processes hidden from transformers, which would split it over them."""
    world = os.environ.pop("WORLD_SIZE", None)
    try:
        return make(use_vllm=options.get("use_vllm", False))
    finally:
        if world is not None:
            os.environ["WORLD_SIZE"] = world


def _result(work_dir: str, model_name: str, dataset: Any) -> Path:
    from vlmeval.smp import get_pred_file_path

    return Path(get_pred_file_path(work_dir, model_name, dataset.dataset_name))


def _forgiving(build_prompt: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a data set's ``build_prompt``: a row that cannot be asked about costs itself alone."""

    def asked(row: Any) -> Any:
        try:
            return build_prompt(row)
        except Exception as exc:
            return messages.unasked(exc)

    return asked


def _together(work: Callable[[], Any]) -> Any:
    """Do a piece of work in every process, or fail in all of them.

    Returns:
        What `work` returns here.

    Raises:
        ProcessFailed: Another process's work raised; this one's raises what it raised.
    """
    problem: Exception | None = None
    done = None
    try:
        done = work()
    except Exception as exc:
        problem = exc
    problems = _gathered("" if problem is None else f"{type(problem).__name__}: {problem}")
    if problem is not None:
        raise problem
    failed = [f"process {rank}: {text}" for rank, text in enumerate(problems) if text]
    if failed:
        raise ProcessFailed("; ".join(failed))
    return done


def _several() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gathered(thing: Any) -> list[Any]:
    """Collect the same thing of every process, in their order."""
    if not _several():
        return [thing]
    import torch.distributed as dist

    things: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(things, thing)
    return things
