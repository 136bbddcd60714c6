"""Compare phrases for mask recall: cosine similarity of two phrases under a sentence encoder.

The benchmark's own is ``bert-base-uncased``: the mean of the last hidden states of all tokens, [CLS] and [SEP] too.
(Raw BERT vectors are similar for most pairs of phrases, so this is a lenient test; that is the benchmark's choice.) Any
model of transformers can stand in by its name or folder. ``words`` needs no model: the cosine of word counts. Which one
was used is kept with the result, since the number depends on it.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flmm_plugin.errors import ToolNotFound

#: Texts to vectors ``float[n, d]``, none of them of a length that matters.
Encoder = Callable[[Sequence[str]], npt.NDArray[Any]]

DEFAULT = "bert-base-uncased"
WORDS = "words"
VARIABLE = "FLMM_SENTENCE_ENCODER"

_BATCH = 64


def chosen(configured: str | None = None) -> str:
    """Name of the encoder: ``$FLMM_SENTENCE_ENCODER``, or what a task is configured with, or the benchmark's."""
    return os.environ.get(VARIABLE) or configured or DEFAULT


@functools.cache
def load(name: str) -> Encoder:
    """Return an encoder by its name: ``words``, or a model of transformers by hub name or folder.

    Raises:
        ToolNotFound: The model is not on this machine and cannot be fetched.
    """
    return count_words if name == WORDS else _Transformer(name)


def count_words(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Count how often each word occurs in each text, ``float64[n, words]``; case and punctuation play no role.

    >>> count_words(["a red dog", "Red dog!"])
    array([[1., 1., 1.],
           [0., 1., 1.]])
    """
    split = [re.findall(r"\w+", text.lower()) for text in texts]
    columns = {word: place for place, word in enumerate(dict.fromkeys(word for words in split for word in words))}
    counts = np.zeros((len(texts), len(columns)))
    for row, words in enumerate(split):
        for word in words:
            counts[row, columns[word]] += 1
    return counts


def cosine(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Cosine of every pair of rows, ``[m, d]`` and ``[n, d]`` to ``[m, n]``; 0 with a vector of length 0.

    >>> cosine(np.array([[3.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])).round(3)
    array([[1.   , 0.   , 0.707]])
    """
    units = [np.asarray(side, dtype=np.float64) for side in (left, right)]
    units = [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in units]
    return np.asarray(units[0] @ units[1].T, dtype=np.float64)


class _Transformer:
    """Mean of a model's last hidden states over all tokens of a text, at most 512."""

    def __init__(self, name: str) -> None:
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(name)
            self._model: Any = AutoModel.from_pretrained(name)
        except (OSError, ValueError, ImportError) as exc:
            first = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
            raise ToolNotFound(
                f"mask recall compares phrases by the model {name!r}, which cannot be loaded ({first}); fetch it once "
                f"with network (huggingface-cli download {name}), or name a folder or `{WORDS}` (no model, another "
                f"number) in {VARIABLE}, or score the kept predictions later: flmm score SAMPLES.jsonl --encoder NAME"
            ) from exc
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = self._model.eval().to(self._device)

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        import torch

        found: list[npt.NDArray[Any]] = []
        for start in range(0, len(texts), _BATCH):
            batch = self._tokenizer(
                list(texts[start : start + _BATCH]), padding=True, truncation=True, max_length=512, return_tensors="pt"
            ).to(self._device)
            with torch.inference_mode():
                states = self._model(**batch).last_hidden_state.float()
            # The benchmark encodes text by text: padding must not count in the mean.
            real = batch["attention_mask"][..., None].to(states.dtype)
            found.append(((states * real).sum(dim=1) / real.sum(dim=1)).cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, 1))
