"""One arm of ``flmm preserve --harness vlmevalkit``: a model, the kit's own inference and scoring around it.

python -P -m flmm_plugin.adapters.vlmevalkit.preserve_arm SPEC.json FOLDER
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from vlmeval.vlm.base import BaseModel

from flmm_plugin import files, json_lines
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.answering.provenance import commit
from flmm_plugin.adapters.preserving.faults import FAULTS
from flmm_plugin.adapters.preserving.record import ArmSpec, read_answers, write_arm
from flmm_plugin.adapters.preserving.stock import shared, with_checkpoint
from flmm_plugin.adapters.preserving.watch import GenerateWatch, logits_of, model_of, phrases_of, weight_hashes
from flmm_plugin.adapters.vlmevalkit.command_line import Requested, unknown
from flmm_plugin.adapters.vlmevalkit.messages import digest_of, is_failure
from flmm_plugin.adapters.vlmevalkit.register import refuse_unknown_names, register
from flmm_plugin.errors import FlmmError, FrozenWeightsChanged, UnknownArgument
from flmm_plugin.images import open_image
from flmm_plugin.reports.preservation import Answer, Arm

_PACKAGES = ("torch", "transformers", "ms-vlmeval", "flmm-plugin")
PLAIN = "plain"


class WatchedModel(BaseModel):
    """A kit model that passes every message on to another and keeps a record.

    Args:
        inner: The model that answers.
        spec: Of the arm.
        watch: Watching ``generate``.
        record: ``answers.jsonl``; what it holds already is not asked again, but for the first message, whose inputs the
            logits of one batch need.
    """

    is_api = False
    INTERLEAVE = True

    def __init__(self, inner: Any, spec: ArmSpec, watch: GenerateWatch, record: Path) -> None:
        super().__init__()
        self.inner, self.spec, self.watch = inner, spec, watch
        self.answers: dict[str, Answer] = {}
        self.grounded = {"asked": 0, "failed": 0}
        self.resumed = 0
        self._times: Counter[str] = Counter()
        self._record = record
        self._known = {answer.key: answer for answer in read_answers(record)}

    def use_custom_prompt(self, dataset: str) -> bool:
        """As the model that answers has it."""
        return bool(self.inner.use_custom_prompt(dataset))

    def build_prompt(self, line: Any, dataset: str) -> Any:
        """As the model that answers has it."""
        return self.inner.build_prompt(line, dataset=dataset)

    def set_dump_image(self, dump_image_func: Any) -> None:
        """For both."""
        super().set_dump_image(dump_image_func)
        self.inner.set_dump_image(dump_image_func)

    def generate(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """The answer of the model that answers, or what it said before the arm was killed."""
        digest = digest_of(message, dataset)[:16]
        self._times[digest] += 1
        key = f"{dataset}/{digest}/{self._times[digest]}"
        known = self._known.get(key)
        if known is not None and not known.error and self.answers:
            self.answers[key] = known
            self.resumed += 1
            return known.text
        number = len(self.answers)
        question = "\n".join(str(part["value"]) for part in message if part["type"] == "text")
        self.watch.clear()
        torch.manual_seed(self.spec.seed + number)
        text = str(self.inner.generate(message=[dict(part) for part in message], dataset=dataset))
        rows = self.watch.rows
        error = self.watch.error or (text if is_failure(text) else "")
        said = Answer(key=key, task=str(dataset), doc_id=number, question=question, text=text, error=error)
        if rows:
            said = Answer(
                key=key, task=str(dataset), doc_id=number, question=question, text=text, error=error,
                ids=tuple(token for row in rows for token in row.ids), prompt="+".join(row.prompt for row in rows),
                inputs=dict(rows[-1].inputs), asked=str(list(rows[-1].asked)),
            )  # fmt: skip
        self.answers[key] = said
        json_lines.append(self._record, said.as_json())
        if self.spec.ground_every and (number + 1) % self.spec.ground_every == 0:
            self._ground(message, question)
        return text

    def _ground(self, message: Sequence[Mapping[str, Any]], question: str) -> None:
        """One grounding about the picture just asked about; without heads, its attention is read."""
        lmm = getattr(self.inner, "lmm", None)
        paths = [part["value"] for part in message if part["type"] == "image"]
        if lmm is None or not paths:
            return
        self.grounded["asked"] += 1
        try:
            picture, phrases = open_image(paths[0]), phrases_of(question)
            if lmm.heads is None:
                for phrase in phrases:
                    lmm.attention_maps(picture, phrase)
            else:
                lmm.ground(picture, phrases)
        except Exception as exc:
            self.grounded["failed"] += 1
            print(f"flmm preserve: grounding between questions failed: {type(exc).__name__}: {exc}", file=sys.stderr)


def run_arm(spec: ArmSpec, folder: Path) -> Arm:
    """Run (or go on with) an arm in this process, and write it.

    Raises:
        UnknownArgument: A data set without chat, or one that does not exist.
    """
    register()
    refuse_unknown_names(Requested([], spec.tasks, free=False))
    files.make_folder(folder)
    began = time.monotonic()
    watch = GenerateWatch()
    name, inner = make_model(spec)
    body = model_of(inner)
    before = weight_hashes(body)
    model = WatchedModel(inner, spec, watch, folder / "answers.jsonl")
    with watch.watching():
        metrics = {data: _one_data_set(model, data, spec, folder / "kit") for data in spec.tasks}
    logits, no_logits = logits_of(body, watch.first)
    after = weight_hashes(body)
    seal = ""
    try:
        if hasattr(inner, "seal"):
            inner.seal.verify()
    except FrozenWeightsChanged as exc:
        seal = str(exc)
    config = getattr(body, "config", None)
    arm = Arm(
        role=spec.role,
        adapter=name,
        settings={
            "kernel": getattr(config, "_attn_implementation", None), "dtype": str(getattr(body, "dtype", "")),
            "device": str(getattr(body, "device", "")), "batch_size": 1,
        },
        answers=model.answers,
        metrics=metrics,
        weights=before,
        weights_after=tuple(one for one in sorted({*before, *after}) if before.get(one) != after.get(one)),
        grounded=model.grounded,
        provenance={
            "class": type(body).__name__, **{one: _version(one) for one in _PACKAGES}, "commit": commit(),
            "heads": getattr(getattr(getattr(getattr(inner, "lmm", None), "heads", None), "manifest", None), "sha256",
                             None),
            "seal": seal, "logits": no_logits,
        },
        resumed=model.resumed,
        seconds=time.monotonic() - began,
    )  # fmt: skip
    if logits is not None:
        with files.new_file(folder / "logits.pt") as part:
            torch.save(logits, part)
    write_arm(folder, arm)
    return arm


def make_model(spec: ArmSpec) -> tuple[str, Any]:
    """The model of an arm and what it is: this package's, plain transformers, or one of the kit's own by its name.

    Raises:
        UnknownArgument: There is no such model.
    """
    from vlmeval.config import supported_VLM

    if not spec.stock:
        given = {"device": spec.device, **spec.model_args}
        model = supported_VLM[spec.model](**given)
        if spec.plant:
            FAULTS[spec.plant](model)
        return spec.model, model
    if spec.stock in ("auto", PLAIN):
        from flmm_plugin.adapters.vlmevalkit.preserve_plain import PlainTransformers

        told = with_checkpoint(shared(spec.model_args), DEFAULTS[spec.model].pretrained)
        return "plain transformers", PlainTransformers(**{"device": spec.device, **told, **spec.stock_args})
    if spec.stock not in supported_VLM:
        raise UnknownArgument(f"{unknown('model', spec.stock, supported_VLM)} vlmutil mlist all names them")
    return f"the kit's {spec.stock}", supported_VLM[spec.stock](**spec.stock_args)


def _one_data_set(model: WatchedModel, name: str, spec: ArmSpec, work: Path) -> dict[str, Any]:
    """Answers and metrics of one data set, through the kit's own inference and scoring."""
    from vlmeval.dataset import build_dataset
    from vlmeval.inference import infer_data_job
    from vlmeval.smp import get_pred_file_path
    from vlmeval.smp.status_report import flatten_summary_metrics

    # The kit's own partial results are of the run that was killed; the arm has a record of its own.
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    data = build_dataset(name)
    if spec.limit is not None:
        # As lmms-eval takes it: below 1 it is a share.
        rows = spec.limit if spec.limit >= 1 else math.ceil(spec.limit * len(data.data))
        data.data = data.data.iloc[: int(rows)]
    infer_data_job(model, work_dir=str(work), model_name="arm", dataset=data)
    result = get_pred_file_path(str(work), "arm", name, use_env_format=True)
    found = flatten_summary_metrics(data.evaluate(result, model="exact_matching", nproc=1))
    return {str(key): value if isinstance(value, str | int) else float(value) for key, value in found.items()}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the arm of a file in a process of its own; what it says goes to ``log.txt``."""
    spec_file, folder = map(Path, (argv or sys.argv[1:])[:2])
    spec = ArmSpec.from_json(json.loads(spec_file.read_text(encoding="utf-8")))
    try:
        run_arm(spec, folder)
    except FlmmError as exc:
        print(f"\n{type(exc).__name__}: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
