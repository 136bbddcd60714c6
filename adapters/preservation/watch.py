"""Record what a model was given and what it generated, seen from outside: transformers' own ``generate``, watched.

The watcher stands where every adapter has to pass, whoever wrote it: ``GenerationMixin.generate``. It calls the
original with its own arguments, returns what the original returned, and takes hashes, in every run of a proof alike.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flmm_plugin import json_lines
from flmm_plugin.adapters.preservation.record import RunSpec, read_answers
from flmm_plugin.adapters.preservation.verdict import Answer, Check, logits_check
from flmm_plugin.errors import BackboneUnsupported, FrozenWeightsChanged
from flmm_plugin.seal import FrozenSeal


@dataclass(frozen=True)
class Row:
    """One sequence of one call of ``generate``.

    Attributes:
        ids: Generated token ids, up to and with the first end token.
        prompt: Hash of the prompt's ids, padding left out; empty if there were none (embeddings).
        inputs: Hashes of every other tensor that went in, by name.
        asked: The prompt's ids, for a reader: each run of one token (a picture's placeholders) once.
    """

    ids: tuple[int, ...]
    prompt: str
    inputs: Mapping[str, str]
    asked: tuple[int, ...] = ()


class GenerateWatch:
    """Records the outermost calls of ``generate`` while `watching`.

    Attributes:
        rows: One per sequence, in the order of the calls, since the last `clear`.
        error: Class and message of what the last failed call raised, since the last `clear`.
        first: The tensors of the very first call: the logits of one batch are computed from them.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.error = ""
        self.first: dict[str, Tensor] | None = None
        self._inside = False

    def clear(self) -> None:
        """Forget rows and error, not the first call."""
        self.rows, self.error = [], ""

    @contextmanager
    def watching(self) -> Iterator[GenerateWatch]:
        """Watch until the block ends; not to be nested."""
        from transformers import GenerationMixin

        mixin: Any = GenerationMixin
        original = mixin.generate

        @functools.wraps(original)
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside:  # a model whose generate calls its language model's
                return original(model, *args, **kwargs)
            self._inside = True
            try:
                made = original(model, *args, **kwargs)
            except Exception as exc:
                self.error = f"{type(exc).__name__}: {exc}"
                raise
            finally:
                self._inside = False
            self._note(model, args, kwargs, made)
            return made

        mixin.generate = generate
        try:
            yield self
        finally:
            mixin.generate = original

    def _note(self, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> None:
        given = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        if args and isinstance(args[0], Tensor):
            given.setdefault("input_ids", args[0])
        if "inputs" in given:
            given.setdefault("input_ids", given.pop("inputs"))
        if self.first is None:
            self.first = {name: value.detach().clone() for name, value in given.items()}
        sequences: Tensor = made if isinstance(made, Tensor) else made.sequences
        ends = kwargs.get("eos_token_id")
        ends = getattr(model.generation_config, "eos_token_id", None) if ends is None else ends
        stops = {int(end) for end in (ends if isinstance(ends, list | tuple) else [ends]) if end is not None}
        prompts = given.get("input_ids")
        start = 0 if prompts is None else prompts.shape[1]
        for number, sequence in enumerate(sequences[:, start:].tolist()):
            inputs = _inputs_of(given, number, len(sequences))
            prompt = inputs.pop("input_ids", "")
            asked: list[int] = [] if prompts is None else _unpadded(given, prompts, number).tolist()
            self.rows.append(
                Row(until_end(sequence, stops), prompt, inputs, tuple(token for token, _ in groupby(asked)))
            )


def until_end(ids: Sequence[int], ends: set[int]) -> tuple[int, ...]:
    """Cut generated ids behind the first end token, which is kept; what a batch pads there is not the model's.

    >>> until_end([5, 6, 2, 0, 0], {2})
    (5, 6, 2)
    """
    for place, token in enumerate(ids):
        if token in ends:
            return tuple(ids[: place + 1])
    return tuple(ids)


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 over precision, shape and bytes."""
    whole = hashlib.sha256(f"{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    whole.update(flat.view(torch.uint8).numpy().data)
    return whole.hexdigest()


def model_of(adapter: Any) -> nn.Module:
    """Find the transformers model behind a harness's model, whoever wrote it.

    Raises:
        BackboneUnsupported: It is nowhere to be found.
    """
    for holder, names in ((getattr(getattr(adapter, "lmm", None), "backbone", None), ("model",)),
                          (adapter, ("model", "_model"))):  # fmt: skip
        for name in names:
            found = getattr(holder, name, None)
            if isinstance(found, nn.Module):
                return found
    raise BackboneUnsupported(
        f"{type(adapter).__name__} does not say where its transformers model is (no attribute `model`), so its weights "
        "cannot be compared; use --stock plain"
    )


@torch.no_grad()
def logits_of(model: nn.Module, first: Mapping[str, Tensor] | None) -> tuple[Tensor | None, str]:
    """Compute the logits of every position of the first call's prompt, on the CPU; None and the reason if it fails."""
    if first is None:
        return None, "no call of generate was seen"
    takes = inspect.signature(model.forward).parameters
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values())
    inputs = {name: value for name, value in first.items() if anything or name in takes}
    try:
        return model(**inputs).logits.detach().cpu(), ""
    except Exception as exc:  # a family whose prompt pass needs more than generate was given
        return None, f"{type(exc).__name__}: {exc}"


def compare_logits(left: Path, right: Path) -> Check:
    """Compare two saved tensors by ``torch.equal``."""
    for path in (left, right):
        if not path.is_file():
            return logits_check(None, f"{path.parent.name} has no logits")
    a, b = (torch.load(path, weights_only=True) for path in (left, right))
    shape = list(a.shape)
    if a.shape != b.shape or a.dtype != b.dtype:
        return logits_check(False, f"{shape} {a.dtype} and {list(b.shape)} {b.dtype}")
    if torch.equal(a, b):
        return logits_check(True, f"{shape}, torch.equal")
    apart = (a.double() - b.double()).abs()
    wrong = int((a != b).sum())
    return logits_check(False, f"{wrong} of {a.numel()} logits of {shape} differ, by up to {float(apart.max()):.3g}")


class Recorder:
    """The record of a run while it runs: answers on disk, groundings between the questions, weights at both ends.

    Args:
        spec: Specification of the run to record.
        model: The harness's model that answers.
        path: ``answers.jsonl``; requests that it holds already need not be asked again.

    Attributes:
        network: The transformers model behind `model`, once the recorder is open.
        answers, grounded, resumed, weights, weights_after: As in `RunRecord`.
        logits: Logits of the first prompt, computed last of all, or None; `no_logits` is the reason.
        seal_broken: Message of a seal on the weights that did not hold.
    """

    def __init__(self, spec: RunSpec, model: Any, path: Path) -> None:
        self.spec, self.model, self.watch = spec, model, GenerateWatch()
        self.answers: dict[str, Answer] = {}
        self.grounded = {"asked": 0, "failed": 0}
        self.resumed = 0
        self.weights: dict[str, str] = {}
        self.weights_after: tuple[str, ...] = ()
        self.logits: Tensor | None = None
        self.no_logits = ""
        self.seal_broken = ""
        self._path = path
        self._known = {answer.key: answer for answer in read_answers(path)}
        self._batches = 0

    def open(self) -> None:
        """Hash the weights, before the first request."""
        self.network = model_of(self.model)
        self.weights = FrozenSeal(self.network).hashes

    def close(self, verify: Callable[[], Any]) -> None:
        """Compute the logits of one prompt and hash the weights once more, after the last request.

        Args:
            verify: Checks the model's own seal, and may free the model.
        """
        self.logits, self.no_logits = logits_of(self.network, self.watch.first)
        after = FrozenSeal(self.network).hashes
        names = sorted({*self.weights, *after})
        self.weights_after = tuple(name for name in names if self.weights.get(name) != after.get(name))
        try:
            verify()
        except FrozenWeightsChanged as exc:
            self.seal_broken = str(exc)

    def begin(self, questions: Mapping[str, str], *, first: bool) -> bool:
        """Begin a batch of requests.

        Args:
            questions: Text of each request by its key.
            first: True if they must be asked whatever is on disk: the logits are computed from the first inputs.

        Returns:
            True if they have to be asked; else their answers were on disk.
        """
        self._batches += 1
        known = {key: self._known[key] for key in questions if key in self._known}
        fit = [key for key, answer in known.items() if answer.question == questions[key] and not answer.error]
        if len(fit) == len(questions) and not first:
            self.answers.update(known)
            self.resumed += len(known)
            return False
        self.watch.clear()
        torch.manual_seed(self.spec.seed + self._batches)
        return True

    def answer(self, answer: Answer, number: int = 0, size: int = 1) -> Answer:
        """Complete an answer with what was seen of ``generate``.

        Args:
            answer: What the harness knows of it.
            number: Place of its request in the batch.
            size: Requests in the batch. A request alone may have taken several calls.
        """
        answer = dataclasses.replace(answer, error=self.watch.error or answer.error)
        rows = self.watch.rows
        if size > 1:
            rows = [rows[number]] if len(rows) == size else []
        if not rows or answer.score is not None:
            return answer
        return dataclasses.replace(
            answer,
            ids=tuple(token for row in rows for token in row.ids),
            prompt="+".join(row.prompt for row in rows),
            inputs=dict(rows[-1].inputs),
            asked=self._readable(rows[-1].asked),
        )

    def keep(self, answers: Sequence[Answer]) -> bool:
        """Write the answers of a batch to disk; True if a grounding request is due."""
        self.answers.update({answer.key: answer for answer in answers})
        json_lines.append(self._path, *(answer.as_json() for answer in answers))
        return bool(self.spec.ground_every) and self._batches % self.spec.ground_every == 0

    def ground(self, question: str, picture: Any, ask: Callable[[Any, list[str]], bool]) -> None:
        """Ground phrases of a question in the picture just asked about; without heads, read their attention.

        Args:
            question: The question's text.
            picture: Returns the picture, or is it.
            ask: Grounds phrases in a picture; returns False if that failed.
        """
        lmm, phrases = self.model.lmm, phrases_of(question)
        self.grounded["asked"] += 1
        try:
            if lmm.heads is not None:
                self.grounded["failed"] += not ask(picture, phrases)
                return
            for phrase in phrases:
                lmm.attention_maps(picture, phrase)
        except Exception as exc:
            self.grounded["failed"] += 1
            print(f"flmm preserve: grounding between questions failed: {type(exc).__name__}: {exc}", file=sys.stderr)

    def _readable(self, ids: Sequence[int]) -> str:
        """Decode a prompt; return its ids where that fails."""
        try:
            owner = self.model if hasattr(self.model, "tokenizer") else self.model.lmm.backbone
            return str(owner.tokenizer.decode(list(ids)))
        except Exception:  # tokenizers of remote code fail in their own ways, and this is for readers only
            return str(list(ids))


def phrases_of(question: str) -> list[str]:
    """Pick two phrases that the model's own tokenizer surely knows: the question's first and last words.

    >>> phrases_of("Is there a dog in the image? Please answer yes or no.")
    ['Is there a', 'yes or no']
    """
    words = re.findall(r"\w+", question) or ["picture"]
    return list(dict.fromkeys([" ".join(words[:3]), " ".join(words[-3:])]))


def _unpadded(given: Mapping[str, Tensor], values: Tensor, number: int) -> Tensor:
    """Return one sequence's share of ``[b, l]`` values, without what the attention mask calls padding."""
    mask = given.get("attention_mask")
    return values[number] if mask is None or mask.shape != values.shape else values[number][mask[number].bool()]


def _inputs_of(given: Mapping[str, Tensor], number: int, rows: int) -> dict[str, str]:
    """Hash one sequence's share of the inputs; of tokens without their padding."""
    ids = given.get("input_ids")
    hashes = {}
    for name, tensor in given.items():
        if name == "attention_mask":
            continue
        if ids is not None and tensor.shape == ids.shape:
            hashes[name] = digest(_unpadded(given, tensor, number))
        elif tensor.ndim and tensor.shape[0] == rows:
            hashes[name] = digest(tensor[number])
        else:  # several pictures, or one long list of patches: of the batch as one
            hashes[name] = digest(tensor)
    return hashes
