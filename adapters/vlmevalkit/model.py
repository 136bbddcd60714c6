"""Define the one VLMEvalKit model class of this package: a grounded LMM under each of its names.

Importing this imports the kit, and with it torch and every model of the kit: only `register` does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from loguru import logger
from vlmeval.vlm.base import BaseModel

from flmm_plugin.adapters.answering.answerer import Answerer, TextReply
from flmm_plugin.adapters.answering.arguments import ARGUMENTS_VARIABLE, ModelArguments
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.answering.failures import FailureLog
from flmm_plugin.adapters.answering.needs import needs_heads
from flmm_plugin.adapters.answering.provenance import record_of
from flmm_plugin.adapters.vlmevalkit import messages
from flmm_plugin.adapters.vlmevalkit.benchmarks import tasks_of
from flmm_plugin.adapters.vlmevalkit.run_files import Journal
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.measured import remember_model
from flmm_plugin.options import arguments_of, as_switch


class FLMM(BaseModel):
    """A frozen LMM that chats as it always does, and answers data sets of this package with masks.

    In a ``--config`` file: ``{"class": "FLMM", "name": "flmm_llava", "heads": "heads.safetensors"}``.

    Args:
        name: Name of a model as ``--model`` takes it: a key of `DEFAULTS` in `flmm_plugin.adapters.answering.defaults`.
        pretrained: Folder or hub id of the LMM, if it is not the name's own.
        heads: Grounding heads: ``auto`` (those that belong to the LMM), a file, ``none`` for chat alone.
        device: Where to run; the default is the first GPU that the kit left visible to this process.
        **options: `flmm_plugin.adapters.answering.arguments` lists them; an unknown one is refused. What the variable
            ``FLMM_MODEL_ARGS`` says counts where none is given here.

    Attributes:
        journal: Where answers are written down one by one, while the kit asks about a data set.
        batch_size, world_size: For the record that stands beside the results.
    """

    is_api = False
    INTERLEAVE = True
    batch_size: ClassVar[int] = 1

    def __init__(self, name: str = "flmm_auto", **options: Any) -> None:
        super().__init__()
        if name not in DEFAULTS:
            raise UnknownArgument(f"there is no F-LMM model {name!r}; there are {', '.join(DEFAULTS)}")
        if as_switch("use_vllm", options.pop("use_vllm", False)):
            raise UnknownArgument("vLLM gives no attention to read masks from; leave --use-vllm out")
        given = {**arguments_of(os.environ.get(ARGUMENTS_VARIABLE, "")), **options}
        self.arguments: Mapping[str, Any] = {"name": name, **given}
        if int(given.pop("batch_size", 1)) != 1:
            raise UnknownArgument("VLMEvalKit asks one sample at a time; leave batch_size out")
        read = self._read = ModelArguments.read(DEFAULTS[name], given)
        self.visual_cot = read.visual_cot
        self.lmm: Any = read.load(read.device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        # Taken now: the seal is made when it is first asked for, and must know the weights before the first answer.
        self.seal = self.lmm.seal
        self._answerer = Answerer(
            self.lmm,
            visual_cot=read.visual_cot,
            grounds=read.heads is not None,
            take_heads=self._take_heads,
            doc_of=messages.document_of,
            chat_of=messages.chat_of,
        )
        self.journal: Journal | None = None
        self._failures = FailureLog(int(os.environ.get("RANK", 0)))
        self._asked = 0
        # The kit hides the number of processes while a model is made.
        self.world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.provenance = self._record()

    def get_ready(self, dataset: Any) -> bool:
        """Load the heads if a data set needs them.

        Args:
            dataset: One of the kit's data sets, or of this package's.

        Returns:
            Whether it needs heads.
        """
        asked: Sequence[Mapping[str, Any]] = getattr(dataset, "task_options", ({},))
        grounds = any(needs_heads(options, self.visual_cot) for options in asked)
        if grounds:
            self._take_heads()
        return grounds

    def _take_heads(self) -> None:
        if self._read.take_heads(self.lmm):
            self.provenance = self._record()

    def _record(self) -> dict[str, Any]:
        return record_of(self, {**self.arguments, "pretrained": self._read.pretrained})

    def generate(self, message: Any, dataset: str | None = None) -> str:
        """Answer a message: text, masks JSON where the data set asked for masks, or a mark of failure.

        The kit's own takes a text that happens to be a path for a file, and raises where a picture is missing.
        """
        parts = message if self.check_content(message) == "listdict" else self.preproc_content(message)
        if not parts or any("type" not in part or "value" not in part for part in parts):
            raise UnknownArgument(f"a message is a list of parts with type and value, not {message!r}")
        return self.generate_inner(parts, dataset)

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answer a message in parts; a failed sample costs this sample alone.

        Raises:
            UnknownArgument: The data set asks for what these heads do not have: every sample would.
        """
        self._asked += 1
        problem = messages.problem_of(message)
        if problem is not None:
            self._failures.add(dataset or "", -1, problem)
            return messages.failure(self._failures.last)
        request = messages.request_of(message, dataset)
        self._answerer.refuse_what_heads_lack([request])
        digest = messages.digest_of(message, dataset)
        known = self.journal.get(digest) if self.journal is not None else None
        if known is not None:
            return known
        before = len(self._failures)
        (reply,) = self._answerer.answer([request], self._failures)
        text = reply.text if isinstance(reply, TextReply) else reply
        if len(self._failures) > before:
            return messages.failure(self._failures.last)
        if self.journal is not None:
            self.journal.add(digest, text)
        return text

    def finished(self, dataset: str) -> None:
        """Sum up the failures of a data set, and check the seal on the frozen weights.

        Raises:
            FrozenWeightsChanged: A weight is not what it was when it was loaded.
        """
        self._failures.report(self._asked)
        if int(os.environ.get("RANK", 0)) == 0:
            remember_model(self._answerer.watch, self.lmm.backbone, 1, tasks_of)
        self._failures, self._asked = FailureLog(int(os.environ.get("RANK", 0))), 0
        self.seal.verify()
        logger.info(f"flmm: the seal holds after {dataset}, no weight of the LMM changed")
