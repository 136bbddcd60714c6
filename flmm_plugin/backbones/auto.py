"""The generic way: any model that transformers loads to look at pictures and write text, if its grid can be recovered.

Nothing is taken on trust. Where the image tokens of a picture lie on it is measured through the model's own processor
and vision tower (`flmm_plugin.backbones.measured_views`): one view, tiles with a thumbnail, crops, or flat patches.
Families that say their patches' grid themselves (``image_grid_thw``) are read from it.

What cannot be recovered is an error that says what and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from flmm_plugin.backbones.base import Backbone, ImageTokens, position_ids
from flmm_plugin.backbones.encoding import REFUSALS
from flmm_plugin.backbones.locality import without_mixing
from flmm_plugin.backbones.measured_views import Probe, Run, Shown, not_recovered
from flmm_plugin.backbones.qwen_vl import grids_of_patches, rope_positions
from flmm_plugin.backbones.views import Layout, place
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.token_mixers import token_mixers

# A picture of usual size: whatever a model cuts in tiles, it cuts this.
_USUAL = (384, 512)

# Types whose measured places a painted rectangle contradicts (docs/conformance.md); the reason is not known yet.
_CONTRADICTED = ("llama4",)


class AutoBackbone(Backbone):
    """A model without a family of its own."""

    family: ClassVar[str] = "auto"

    def __init__(self, model: Any, processor: Any, **options: Any) -> None:
        super().__init__(model, processor, **options)
        self._runs: dict[Any, Run] = {}
        self._layouts: dict[tuple[int, int, int], tuple[frozenset[int], Layout]] = {}

    @cached_property
    def decoder(self) -> nn.Module:
        """The language model's body, whose layers' attention is read.

        Raises:
            BackboneUnsupported: The model does not say which part that is, or no layer of it has rows.
        """
        if not hasattr(self.model, "get_decoder"):
            raise BackboneUnsupported(not_recovered(self.name, "it does not say which part is its language model"))
        decoder: nn.Module = self.model.get_decoder()
        while not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            inner = getattr(decoder, "model", None) or getattr(decoder, "decoder", None)
            if not isinstance(inner, nn.Module):
                why = f"its language model, a {type(decoder).__name__}, has no list of layers"
                raise BackboneUnsupported(not_recovered(self.name, why))
            decoder = inner
        if not any(one.heads for one in token_mixers(decoder)):
            why = f"no layer of its {type(decoder).__name__} has attention to read"
            raise BackboneUnsupported(not_recovered(self.name, why))
        return decoder

    @property
    def image_token(self) -> str:
        """The token that stands for a picture in the text of a chat; ``<image>`` where the processor names none."""
        return str(getattr(self.processor, "image_token", None) or "<image>")

    def try_processor(self) -> None:
        """Only where the model says which part is its language model, and the processor names an image token."""
        if hasattr(self.model, "get_decoder") and getattr(self.processor, "image_token", None) is not None:
            super().try_processor()

    def try_text(self) -> str:
        """A chat with a picture, as its template writes it: some processors expand another token than they name."""
        return self.render([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}])

    def _check_places(self, texts: list[str], images: list[list[Image.Image]]) -> None:
        """Leave to the processor what it alone knows: some put pictures where no token of the text says so."""
        token = getattr(self.processor, "image_token", None)
        if token is not None and any(str(token) in text for text in texts):
            super()._check_places(texts, images)

    def pictures(self, images: list[list[Image.Image]]) -> Any:
        """The pictures of several chats chat by chat: some processors take a flat list for those of one chat."""
        return images if len(images) > 1 and all(images) else super().pictures(images)

    @property
    def image_token_id(self) -> int:
        """The placeholder of one image token in ``input_ids``."""
        for owner, name in (
            (self.model.config, "image_token_id"),
            (self.model.config, "image_token_index"),
            (self.processor, "image_token_id"),
        ):
            found = getattr(owner, name, None)
            if isinstance(found, int):
                return found
        if getattr(self.processor, "image_token", None) is None:
            raise BackboneUnsupported(not_recovered(self.name, "its processor names no image token"))
        return int(self.tokenizer.convert_tokens_to_ids(self.image_token))

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """As the model's own function gives them where it has one (several axes), else counted."""
        body = getattr(self.model, "model", None)
        if hasattr(body, "get_rope_index"):
            try:
                return rope_positions(body, inputs)
            except REFUSALS as exc:
                raise BackboneUnsupported(f"{self.name} does not say the positions of its tokens: {exc}") from exc
        return position_ids(inputs["attention_mask"])

    def forward_body(self, inputs: Mapping[str, Any], **options: Any) -> Any:
        """One forward pass without vocabulary logits, after which the model remembers what it did before."""
        body = getattr(self.model, "model", None)
        remembered = getattr(body, "rope_deltas", None)
        try:
            return super().forward_body(inputs, **options)
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as exc:
            raise BackboneUnsupported(f"{self.name} does not read a chat back that it was given: {exc}") from exc
        finally:
            if body is not None and hasattr(body, "rope_deltas"):
                body.rope_deltas = remembered

    @cached_property
    def maps_per_image(self) -> int:  # type: ignore[override]
        """2 where a picture of usual size is shown in a coarse and a fine view, else 1."""
        if self._states_grids:
            return 1
        return min(2, len(self._run(self._shown(*_USUAL, 1), 1).views))

    def image_tokens(self, inputs: Mapping[str, Tensor], images: list[list[Image.Image]]) -> list[list[ImageTokens]]:
        """One view per picture, or a coarse and a fine one.

        Raises:
            BackboneUnsupported: Something of it could not be recovered; says what.
        """
        if self._states_grids:
            placeholders = inputs["input_ids"] == self.image_token_id
            return place(placeholders, grids_of_patches(self.processor, inputs, images), self.name)
        found = [[self._layout(one.height, one.width, min(2, len(some))) for one in some] for some in images]
        ids = sorted({one for some in found for kinds, _ in some for one in kinds})
        placeholders = torch.isin(inputs["input_ids"], torch.tensor(ids, device=inputs["input_ids"].device))
        return place(placeholders, [[layout for _, layout in some] for some in found], self.name)

    @property
    def _states_grids(self) -> bool:
        """Whether inputs say how many patches a picture has, and the processor what it merges.

        The first fast image processor of PaddleOCR-VL does not list what it makes; its model lists what it takes.
        """
        pictures = getattr(self.processor, "image_processor", None)
        made = getattr(pictures, "model_input_names", None) or ()
        stated = "image_grid_thw" in (*made, *signature(self.model.forward).parameters)
        return stated and all(isinstance(getattr(pictures, name, None), int) for name in ("patch_size", "merge_size"))

    def _layout(self, height: int, width: int, copies: int) -> tuple[frozenset[int], Layout]:
        """Placeholders and run of a picture of this size, alone in its chat or beside others (2 copies)."""
        key = (height, width, copies)
        if key not in self._layouts:
            views = self.maps_per_image
            shown = self._shown(height, width, copies)
            run = self._run(shown, copies)
            layout = run.layout(shown, min(views, len(run.views)))
            self._layouts[key] = (run.ids, layout.twice() if len(layout.coarse) + 1 < views else layout)
        return self._layouts[key]

    def _shown(self, height: int, width: int, copies: int) -> Shown:
        chat = [{"role": "user", "content": [{"type": "image"}] * copies + [{"type": "text", "text": "?"}]}]
        text = self.render(chat)

        def process(picture: Image.Image) -> Mapping[str, Tensor]:
            return self._processed([text], [[picture] * copies])

        try:
            return Shown(process, height, width, self._patch, self.name)
        except REFUSALS as exc:
            why = f"its processor's pixels of a {width} x {height} picture cannot be followed ({exc})"
            raise BackboneUnsupported(not_recovered(self.name, why)) from exc

    def _run(self, shown: Shown, copies: int) -> Run:
        if self.model.config.model_type in _CONTRADICTED:
            raise BackboneUnsupported(not_recovered(self.name, "a painted rectangle contradicts what was measured"))
        key = (copies, *shown.key)
        if key not in self._runs:
            try:
                with without_mixing(), torch.no_grad():
                    self._runs[key] = Probe(shown, lambda inputs: self.embedded(inputs)[0], self.name, copies).run()
            except REFUSALS as exc:
                why = f"it does not take a picture of {shown.width} x {shown.height} pixels ({exc})"
                raise BackboneUnsupported(not_recovered(self.name, why)) from exc
        return self._runs[key]

    @property
    def _patch(self) -> int:
        """Input pixels along the side of a patch, as the vision tower's configuration says; 1 where it does not."""
        for name in ("vision_config", "vision_tower_config", "encoder_config"):
            found = getattr(getattr(self.model.config, name, None), "patch_size", None)
            found = found[0] if isinstance(found, (list, tuple)) else found
            if isinstance(found, int):
                return found
        return 1
