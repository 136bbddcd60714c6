"""Read what the heads need of the frozen models for one sample, as the paper's method does, without its cost.

The LMM runs its stock forward pass once over picture and text; attention rows and hidden states of the phrases' tokens
are taken beside it. The keyword selector is asked about texts that are tokenised as a whole, so where that gives other
tokens than the pieces do, it gets a pass of its own (no attention is read in it). SAM's image encoder sees the picture
once. None of this changes while heads are trained: `flmm_plugin.training.cache` keeps it.

One sample at a time, in evaluation mode and without automatic mixed precision: what is read then depends on the sample
alone, not on its neighbours in a batch, so that a resumed run and a run on more processes read the same bits.

Shapes: n phrases, t tokens, m layers, c heads per layer, d hidden size, h x w image-token grid, p x g x g SAM's
embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

import flmm_plugin
from flmm_plugin.attention import AttentionCapture
from flmm_plugin.capture import capture_passages, last_states
from flmm_plugin.errors import CaptureError, EmptyPhrase
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.grounding import question_passage
from flmm_plugin.heads import GroundingHeads, ImageEmbedding
from flmm_plugin.measured import Stopwatch
from flmm_plugin.passages import Passage
from flmm_plugin.seal import FrozenSeal
from flmm_plugin.training.samples import TrainingSample
from flmm_plugin.training.store import ScaledFloat16

#: Stages of a training, as `flmm_plugin.measured` names them: the two frozen models, and a step of the heads.
LMM_STAGE, SAM_STAGE, HEADS_STAGE = "train: LMM", "train: SAM", "train: heads"

# Counts changes of what is captured: features of another version are read anew.
CAPTURE_VERSION = 3
_ORIGIN = (
    "_commit_hash", "_name_or_path", "transformers_version", "processor_class", "_processor_class", "auto_map",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """All that heads see of one sample.

    Attributes:
        attention: ``float32[n, maps, h, w]``, grid frame: merged over each phrase's tokens, not normalised; channels
            as `Backbone.attention_maps` orders them.
        hidden: n x ``float32[t_i, m, d]``, outputs of every layer at each phrase's tokens.
        grid: How the token grid lies on the picture.
        embedding: SAM's; None where the heads have no refiner.
        selector_hidden: ``float32[t, d]``, states after the final norm of the whole text's tokens; None where the
            keyword selector does not learn from the sample.
        selector_labels: ``bool[t]``: the token shares a character with a phrase.
    """

    attention: Tensor
    hidden: tuple[Tensor, ...]
    grid: ImageGrid
    embedding: ImageEmbedding | None = None
    selector_hidden: Tensor | None = None
    selector_labels: Tensor | None = None

    def changed(self, change: Callable[[Tensor, int], Tensor]) -> FrozenFeatures:
        """Apply a function to every tensor.

        Args:
            change: Takes a tensor, and how many of its last dimensions share a scale when it is rounded.
        """
        embedding, states, labels = self.embedding, self.selector_hidden, self.selector_labels
        return FrozenFeatures(
            change(self.attention, 2),
            tuple(change(one, 1) for one in self.hidden),
            self.grid,
            None if embedding is None else replace(embedding, features=change(embedding.features, 2)),
            None if states is None else change(states, 1),
            None if labels is None else change(labels, 0),
        )

    def to(self, device: torch.device | str) -> FrozenFeatures:
        """Copy to a device."""
        return self.changed(lambda tensor, _: tensor.to(device))

    def blanked(self) -> FrozenFeatures:
        """Replace everything of the LMM by zeros, but keep the image's embedding (the control ``image_only``)."""
        states = self.selector_hidden
        return replace(
            self,
            attention=torch.zeros_like(self.attention),
            hidden=tuple(torch.zeros_like(one[:1]) for one in self.hidden),
            selector_hidden=None if states is None else torch.zeros_like(states),
        )

    def rounded(self) -> FrozenFeatures:
        """Round to what a cache returns, also where nothing is kept: no run may depend on what fitted under a cap."""
        return self.changed(_rounded)


def rounded_embedding(embedding: ImageEmbedding) -> ImageEmbedding:
    """Round an image embedding to what a cache returns."""
    return replace(embedding, features=_rounded(embedding.features, 2))


class FeatureSource(Protocol):
    """Source of features: `FrozenReader`, or `flmm_plugin.training.cache.CachedReader` in front of it."""

    def read(self, sample: TrainingSample) -> FrozenFeatures:
        """Read the features of one sample. Raises as `FrozenReader.read`."""


class FrozenReader:
    """Reads samples with the frozen models of a `GroundedLMM` that is to be trained.

    Args:
        lmm: With the heads that learn: their manifest says how text stands around a picture and how tokens are merged,
            their refiner holds SAM's frozen encoder.

    Raises:
        HeadsMismatch: There are no heads.
    """

    def __init__(self, lmm: GroundedLMM) -> None:
        self.lmm = lmm
        self.heads: GroundingHeads = lmm.need_heads()
        self.watch = Stopwatch()
        lmm.backbone.model.eval()

    def read(self, sample: TrainingSample) -> FrozenFeatures:
        """Read everything of one sample, on the devices of the frozen models.

        Raises:
            BadImage: The picture cannot be read.
            EmptyPhrase: A phrase tokenises to nothing, or there is none.
            CaptureError: What the frozen models gave is not finite.
        """
        picture = sample.image_loader()
        return replace(self.words(sample, picture), embedding=self.picture(sample, picture))

    def words(self, sample: TrainingSample, picture: Image.Image | None = None) -> FrozenFeatures:
        """Read attention and hidden states with the LMM: everything but the embedding. Raises as `read`."""
        with self.watch.lap(LMM_STAGE):
            return self._words(sample, picture)

    @torch.no_grad()
    def _words(self, sample: TrainingSample, picture: Image.Image | None) -> FrozenFeatures:
        picture = sample.image_loader() if picture is None else picture
        backbone = self.lmm.backbone
        labels = selector = None
        with torch.autocast(backbone.device.type, enabled=False):
            # Questions are read as `ground_text` reads them, in the model's own template.
            chat = self.lmm.encode(
                [sample.prompt], [picture], "" if sample.in_question else self.heads.manifest.template
            )
            if sample.in_question:
                passage, encoded = question_passage(backbone.tokenizer, chat, sample.text, sample.spans), chat
            else:
                passage = sample.passage(backbone.tokenizer)
                encoded = chat.extended([passage.ids], backbone.pad_id)
            if not passage.groups:
                raise EmptyPhrase(f"{sample.key} has no phrase to ground; leave it out")
            if not sample.keywords:
                (captured,) = capture_passages(backbone, encoded, [passage], self.lmm.merge)
            else:
                whole, labels = self._keyword_tokens(sample)
                every = torch.arange(encoded.length - len(passage.ids), encoded.length)
                beside = AttentionCapture(backbone.decoder, [every], [encoded.image_tokens[0][0].slots[:0]])
                with beside.active():
                    (captured,) = capture_passages(backbone, encoded, [passage], self.lmm.merge)
                if whole == passage.ids:
                    selector = beside.hidden(0)[:, -1]
                else:
                    (selector,) = last_states(backbone, chat.extended([whole], backbone.pad_id), [len(whole)])
            maps = captured.maps(backbone)
        features = FrozenFeatures(
            maps.float(),
            tuple(one.float() for one in captured.states()),
            captured.image.grid,
            None,
            None if selector is None else selector.float(),
            labels,
        )
        self._check_finite(sample, backbone.name, backbone.dtype, (maps, captured.hidden, selector))
        return features

    @torch.no_grad()
    def picture(self, sample: TrainingSample, picture: Image.Image | None = None) -> ImageEmbedding | None:
        """Compute SAM's embedding of the sample's image; None without a refiner. Raises as `read`."""
        refiner = self.heads.mask_refiner
        if refiner is None:
            return None
        picture = sample.image_loader() if picture is None else picture
        with self.watch.lap(SAM_STAGE), torch.autocast(self.heads.device.type, enabled=False):
            embedding = refiner.encode_image(picture)
            self._check_finite(sample, "SAM's image encoder", embedding.features.dtype, (embedding.features,))
        return embedding

    def words_identity(self) -> dict[str, Any]:
        """Return all that decides what the LMM says about a sample, as plain data."""
        backbone, processor = self.lmm.backbone, self.lmm.backbone.processor
        return {
            "backbone": backbone.name.rstrip("/").rsplit("/", 1)[-1],  # wherever the weights lie
            "family": backbone.family,
            "revision": backbone.revision,
            "weights": self.lmm.seal.digest,
            "configuration": _digest(_described(backbone.model.config)),
            "dtype": str(backbone.dtype),
            "kernel": str(getattr(backbone.decoder.config, "_attn_implementation", None)),
            "preprocessing": backbone.preprocessing,
            "processor": _digest([_described(processor), _described(getattr(processor, "image_processor", None))]),
            "tokenizer": _digest(_tokenizer_content(backbone.tokenizer)),
            "template": self.heads.manifest.template or _digest(str(processor.chat_template)),
            "system_prompt": backbone.system_prompt,
            "merge": self.lmm.merge,
            "rows": backbone.rows,
            **_code(),
        }

    def picture_identity(self) -> dict[str, Any] | None:
        """Return all that decides SAM's embedding of an image; None without a refiner. The same for every backbone."""
        refiner, sam = self.heads.mask_refiner, self.heads.manifest.sam
        if refiner is None:
            return None
        encoder = refiner.sam.image_encoder
        return {
            "sam": sam,
            "weights": FrozenSeal(encoder).digest,
            "dtype": str(next(encoder.parameters()).dtype),
            "mean": refiner.sam.pixel_mean.flatten().tolist(),
            "std": refiner.sam.pixel_std.flatten().tolist(),
            **_code(),
        }

    def _keyword_tokens(self, sample: TrainingSample) -> tuple[list[int], Tensor]:
        """Tokens of the whole text, and which of them share a character with a phrase, ``bool[t]``."""
        passage = Passage.of_spans(self.lmm.backbone.tokenizer, sample.text, sample.spans)
        labels = torch.zeros(len(passage.ids), dtype=torch.bool)
        labels[passage.tokens] = True
        return passage.ids, labels

    def _check_finite(
        self, sample: TrainingSample, model: str, dtype: torch.dtype, found: Sequence[Tensor | None]
    ) -> None:
        if not all(bool(torch.isfinite(one).all()) for one in found if one is not None):
            raise CaptureError(
                f"{sample.key}: what {model} gives in {dtype} is not finite; load it in bfloat16 or float32"
            )


def _rounded(tensor: Tensor, trailing: int) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return ScaledFloat16.of(tensor, trailing).restored().to(tensor.device)


def _described(made: Any) -> Any:
    """Return settings of a processor or a model, without where and with what they were made."""
    if not hasattr(made, "to_dict"):
        return type(made).__name__
    return [type(made).__name__, {key: value for key, value in made.to_dict().items() if key not in _ORIGIN}]


def _tokenizer_content(tokenizer: Any) -> Any:
    """Return vocabulary, merges and rules, where the tokenizer has them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    for of_the_last_call in ("truncation", "padding"):
        rules.pop(of_the_last_call, None)
    return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), rules]


def _code() -> dict[str, str | int]:
    """Return the versions of all that turns images and texts into features."""
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "transformers", "pillow")}
    return {**versions, "flmm_plugin": flmm_plugin.__version__, "capture": CAPTURE_VERSION}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]
