"""Carry out a run in VLMEvalKit: its own inference and scoring around a model that passes on and records messages."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from vlmeval.vlm.base import BaseModel

from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.preservation.faults import FAULTS
from flmm_plugin.adapters.preservation.record import PLAIN_TRANSFORMERS, RunSpec
from flmm_plugin.adapters.preservation.stock import PLAIN, stock_arguments
from flmm_plugin.adapters.preservation.verdict import Answer
from flmm_plugin.adapters.preservation.watch import Recorder
from flmm_plugin.adapters.vlmevalkit.command_line import Requested, unknown
from flmm_plugin.adapters.vlmevalkit.messages import digest_of, is_failure
from flmm_plugin.adapters.vlmevalkit.register import refuse_unknown_names, register
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.images import open_image


def make_model(spec: RunSpec) -> tuple[str, Any]:
    """Load the model of a run: this package's, plain transformers, or one of the kit's own by its name.

    Raises:
        UnknownArgument: There is no such model or data set, or a data set without chat.
    """
    from vlmeval.config import supported_VLM

    register()
    refuse_unknown_names(Requested([], spec.tasks, free=False))
    if not spec.stock:
        model = supported_VLM[spec.model](**{"device": spec.device, **spec.model_args})
        if spec.plant:
            FAULTS[spec.plant](model)
        return spec.model, model
    if spec.stock in ("auto", PLAIN):
        from flmm_plugin.adapters.preservation.plain_vlmevalkit import PlainTransformers

        arguments = {**stock_arguments(spec.model_args, DEFAULTS[spec.model].pretrained), **spec.stock_args}
        return PLAIN_TRANSFORMERS, PlainTransformers(**{"device": spec.device, **arguments})
    if spec.stock not in supported_VLM:
        raise UnknownArgument(f"{unknown('model', spec.stock, supported_VLM)} vlmutil mlist all names them")
    return f"the kit's {spec.stock}", supported_VLM[spec.stock](**spec.stock_args)


def evaluate(
    _adapter: str, recorder: Recorder, folder: Path, _screen: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Answer and score every data set; the kit shows its own progress, in the log.

    Returns:
        Metrics by data set, and no counts of judge answers: scoring is by exact matching.
    """
    model = WatchedModel(recorder)
    metrics = {name: _one_data_set(model, name, folder / "kit") for name in recorder.spec.tasks}
    seal = getattr(recorder.model, "seal", None)
    recorder.close(seal.verify if seal is not None else bool)
    return metrics, {}


class WatchedModel(BaseModel):
    """A kit model that passes every message on to another one and keeps a record; `recorder` has that model."""

    is_api = False
    INTERLEAVE = True

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.inner, self.recorder = recorder.model, recorder
        self._times: Counter[str] = Counter()

    def use_custom_prompt(self, dataset: str) -> bool:
        """Ask the inner model."""
        return bool(self.inner.use_custom_prompt(dataset))

    def build_prompt(self, line: Any, dataset: str) -> Any:
        """Ask the inner model."""
        return self.inner.build_prompt(line, dataset=dataset)

    def set_dump_image(self, dump_image_func: Any) -> None:
        """Set it for both models."""
        super().set_dump_image(dump_image_func)
        self.inner.set_dump_image(dump_image_func)

    def generate(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """Return the inner model's answer, recorded now or before the run was killed."""
        recorder = self.recorder
        digest = digest_of(message, dataset)[:16]
        self._times[digest] += 1
        key = f"{dataset}/{digest}/{self._times[digest]}"
        question = "\n".join(str(part["value"]) for part in message if part["type"] == "text")
        number = len(recorder.answers)
        if recorder.begin({key: question}, first=number == 0):
            text = str(self.inner.generate(message=[dict(part) for part in message], dataset=dataset))
            answer = Answer(key, str(dataset), number, question, text, error=text if is_failure(text) else "")
            paths = [part["value"] for part in message if part["type"] == "image"]
            if recorder.keep([recorder.answer(answer)]) and paths and hasattr(self.inner, "lmm"):
                recorder.ground(question, open_image(paths[0]), self._grounded)
        return recorder.answers[key].text

    def _grounded(self, picture: Any, phrases: list[str]) -> bool:
        self.inner.lmm.ground(picture, phrases)
        return True


def _one_data_set(model: WatchedModel, name: str, work: Path) -> dict[str, Any]:
    """Answer and score one data set through the kit; return its metrics."""
    from vlmeval.dataset import build_dataset
    from vlmeval.inference import infer_data_job
    from vlmeval.smp import get_pred_file_path
    from vlmeval.smp.status_report import flatten_summary_metrics

    # The kit's own partial results are of the run that was killed; the record of this run is the recorder's.
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    data = build_dataset(name)
    limit = model.recorder.spec.limit
    if limit is not None:
        # As lmms-eval takes it: below 1 it is a share.
        rows = limit if limit >= 1 else math.ceil(limit * len(data.data))
        data.data = data.data.iloc[: int(rows)]
    infer_data_job(model, work_dir=str(work), model_name="run", dataset=data)
    result = get_pred_file_path(str(work), "run", name, use_env_format=True)
    found = flatten_summary_metrics(data.evaluate(result, model="exact_matching", nproc=1))
    return {str(key): value if isinstance(value, str | int) else float(value) for key, value in found.items()}
