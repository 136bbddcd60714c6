"""What a model was given and what it generated, seen from outside: transformers' own ``generate``, watched.

The watcher stands where every adapter has to pass, whoever wrote it: ``GenerationMixin.generate``. It calls the
original with what it was called with, returns what the original returned, and takes hashes. It is the same for every
arm of a comparison.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.reports.preservation import LogitsCheck


@dataclass(frozen=True)
class Row:
    """One sequence of one call of ``generate``.

    Attributes:
        ids: What came out.
        prompt: Hash of the prompt's ids, padding left out; empty if there were none (embeddings).
        inputs: Hashes of every other tensor that went in.
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
        error: What the last failed call raised, since the last `clear`.
        first: The tensors of the very first call: what the logits of one batch are computed from.
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
    """Generated ids up to the first end token, which is kept; what a batch pads behind it is not the model's.

    >>> until_end([5, 6, 2, 0, 0], {2})
    (5, 6, 2)
    """
    for place, token in enumerate(ids):
        if token in ends:
            return tuple(ids[: place + 1])
    return tuple(ids)


def digest(tensor: Tensor) -> str:
    """SHA-256 over precision, shape and bytes."""
    whole = hashlib.sha256(f"{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    whole.update(flat.view(torch.uint8).numpy().data)
    return whole.hexdigest()


def model_of(adapter: Any) -> nn.Module:
    """The transformers model behind an lmms-eval model, whoever wrote it.

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
    """Logits of every position of the first call's prompt, on the CPU; or None and the reason."""
    if first is None:
        return None, "no call of generate was seen"
    takes = inspect.signature(model.forward).parameters
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values())
    inputs = {name: value for name, value in first.items() if anything or name in takes}
    try:
        return model(**inputs).logits.detach().cpu(), ""
    except Exception as exc:  # a family whose prompt pass needs more than generate was given
        return None, f"{type(exc).__name__}: {exc}"


def compare_logits(left: Path, right: Path) -> LogitsCheck:
    """``torch.equal`` on two saved tensors."""
    for path in (left, right):
        if not path.is_file():
            return LogitsCheck(None, f"{path.parent.name} has no logits")
    a, b = (torch.load(path, weights_only=True) for path in (left, right))
    shape = list(a.shape)
    if a.shape != b.shape or a.dtype != b.dtype:
        return LogitsCheck(False, f"{shape} {a.dtype} and {list(b.shape)} {b.dtype}")
    if torch.equal(a, b):
        return LogitsCheck(True, f"{shape}, torch.equal")
    apart = (a.double() - b.double()).abs()
    wrong = int((a != b).sum())
    return LogitsCheck(False, f"{wrong} of {a.numel()} logits of {shape} differ, by up to {float(apart.max()):.3g}")


def _unpadded(given: Mapping[str, Tensor], values: Tensor, number: int) -> Tensor:
    """One sequence's share of ``[b, l]`` values, without what the attention mask calls padding."""
    mask = given.get("attention_mask")
    return values[number] if mask is None or mask.shape != values.shape else values[number][mask[number].bool()]


def _inputs_of(given: Mapping[str, Tensor], number: int, rows: int) -> dict[str, str]:
    """Hashes of one sequence's share of the inputs; of tokens without their padding."""
    ids = given.get("input_ids")
    hashes = {}
    for name, tensor in given.items():
        if name == "attention_mask":
            continue
        if ids is not None and tensor.shape == ids.shape:
            hashes[name] = digest(_unpadded(given, tensor, number))
        elif tensor.ndim and tensor.shape[0] == rows:
            hashes[name] = digest(tensor[number])
        else:  # several pictures, or one long list of patches: a batch's as a whole
            hashes[name] = digest(tensor)
    return hashes


def weight_hashes(model: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer, by name."""
    from flmm_plugin.seal import FrozenSeal

    return FrozenSeal(model).hashes


def phrases_of(question: str) -> list[str]:
    """Two phrases that the model's own tokenizer surely knows: the question's first and last words.

    >>> phrases_of("Is there a dog in the image? Please answer yes or no.")
    ['Is there a', 'yes or no']
    """
    words = re.findall(r"\w+", question) or ["picture"]
    return list(dict.fromkeys([" ".join(words[:3]), " ".join(words[-3:])]))
