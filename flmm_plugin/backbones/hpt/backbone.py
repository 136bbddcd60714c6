"""HPT-Air and HPT-Air-1.5 from their published repositories: three folders, loaded one by one.

Language model (Yi-6B-Chat, Llama-3-8B-Instruct) and vision tower (CLIP-L, SigLIP-so400m) are transformers' classes;
the projector's code is the repository's own (`flmm_plugin.backbones.hpt.projector`: only on request, from a pinned
revision). The vendor's tools squash a picture to the working size, and so does chat here; the method's heads were
trained on pictures padded to a square (``preprocessing="paper"``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor

from flmm_plugin.backbones.hpt.model import WORKING_SIZES, HPTForConditionalGeneration, resize_tower
from flmm_plugin.backbones.hpt.projector import check_projector, load_projector
from flmm_plugin.backbones.loading import load_strictly, named_failures, placed, weight_arguments
from flmm_plugin.backbones.preprocessing import Paper
from flmm_plugin.backbones.text_pieces import WORDS, TextPiecesProcessor
from flmm_plugin.backbones.views import OneViewBackbone
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import ImageGrid, InputFrame
from flmm_plugin.options import LoadOptions

LANGUAGE, VISION = "llm", "visual_encoder"

#: Token that ends a turn -> the conversation that its language model was tuned with.
TEMPLATES = {
    "<|eot_id|>": WORDS
    + "{% for turn in messages %}{{ '<|start_header_id|>' ~ turn['role'] ~ '<|end_header_id|>\n\n' "
    + "~ words(turn['content']) ~ '<|eot_id|>' }}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "<|im_end|>": WORDS
    + "{% for turn in messages %}{{ '<|im_start|>' ~ turn['role'] ~ '\n' ~ words(turn['content']) "
    + "~ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}


class HPTBackbone(OneViewBackbone):
    """28 x 28 (Air) or 32 x 32 (Air-1.5) tokens of a squashed picture."""

    family: ClassVar[str] = "hpt"
    paper: ClassVar[Paper] = "padded"
    refused_options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def load(cls, folder: str, *, name: str, options: LoadOptions) -> Self:
        """Load a published repository.

        A device map and quantisation are the language model's; tower and projector go where it begins, unquantised.

        Raises:
            BackboneUnsupported: The projector's code was not asked for or not pinned, or a part cannot be read.
            BadCheckpoint: Weights are damaged, missing, of another shape, or there are some that belong nowhere.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        weights = weight_arguments(options)
        # First what costs nothing and needs the user's word.
        dtype = weights["dtype"] if options.dtype != "auto" else _stored_dtype(folder, options.revision)
        projector = load_projector(
            folder,
            name=name,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
            dtype=dtype,
        )
        with named_failures(name, folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, subfolder=LANGUAGE, revision=options.revision)
        weights["dtype"] = dtype
        llm = load_strictly(AutoModelForCausalLM, folder, name=f"{name}/{LANGUAGE}", **weights, subfolder=LANGUAGE)
        if not hasattr(getattr(llm, "model", None), "layers"):
            raise BackboneUnsupported(f"{name}/{LANGUAGE} is a {llm.config.model_type!r} model; HPT's are Llama's kind")
        of_tower = {key: value for key, value in weights.items() if key not in ("device_map", "quantization_config")}
        tower, pictures = _load_tower(folder, name, of_tower)
        check_projector(
            projector,
            patches=(tower.config.image_size // tower.config.patch_size) ** 2,
            visual_size=tower.config.hidden_size,
            hidden_size=llm.config.hidden_size,
            name=name,
        )
        start = llm.get_input_embeddings().weight.device if "device_map" in weights else torch.device("cpu")
        model = HPTForConditionalGeneration(llm, tower.to(start), projector.to(start))
        processor = _processor(tokenizer, pictures, model, name)
        return cls(placed(model, options), processor, name=name, options=options)

    def grid(self, image_height: int, image_width: int) -> ImageGrid:
        """The grid on a picture that is squashed to the working size."""
        patch = int(self.model.config.vision_config.patch_size)
        return InputFrame.of_image(image_height, image_width).resized(*self.input_size).grid(patch)

    @property
    def input_size(self) -> tuple[int, int]:
        """Rows and columns of pixels that the tower gets."""
        side = int(self.model.config.vision_config.image_size)
        return side, side


def _load_tower(folder: str, name: str, weights: Mapping[str, Any]) -> tuple[Any, Any]:
    """Vision tower at its working size, and the image processor that squashes to it, as the vendor's tools set it."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionModel,
        PreTrainedConfig,
        SiglipImageProcessor,
        SiglipVisionModel,
    )

    where = {"subfolder": VISION, "revision": weights["revision"]}
    with named_failures(name, folder):
        config, _ = PreTrainedConfig.get_config_dict(folder, **where)
    kind = str(config.get("model_type"))
    if not kind.startswith(("clip", "siglip")):
        raise BackboneUnsupported(f"{name}/{VISION} is a {kind!r} model; HPT's are CLIP and SigLIP")
    clip = kind.startswith("clip")
    tower = load_strictly(
        CLIPVisionModel if clip else SiglipVisionModel,
        folder,
        name=f"{name}/{VISION}",
        **{**weights, **where},
    )
    stored = (int(tower.config.image_size), int(tower.config.patch_size))
    side = WORKING_SIZES.get(stored, stored[0])
    if side != stored[0]:
        resize_tower(tower, side)
    size = {"height": side, "width": side}
    with named_failures(name, folder):
        if clip:
            return tower, CLIPImageProcessor.from_pretrained(folder, **where, size=size, do_center_crop=False)
        return tower, SiglipImageProcessor.from_pretrained(folder, **where, size=size)


def _processor(tokenizer: Any, pictures: Any, model: Any, name: str) -> TextPiecesProcessor:
    known = tokenizer.get_vocab()
    end = next((token for token in TEMPLATES if token in known), None)
    if end is None:
        raise BackboneUnsupported(f"the tokenizer of {name} knows none of {', '.join(TEMPLATES)}; restore its files")
    # What ends a turn ends an answer, whatever the tokenizer of the plain language model says.
    tokenizer.eos_token = end
    model.generation_config.eos_token_id = tokenizer.eos_token_id

    def look(picture: Image.Image) -> dict[str, Tensor]:
        return {"pixel_values": pictures(images=picture, return_tensors="pt")["pixel_values"][0]}

    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    return TextPiecesProcessor(tokenizer, look, tokens, model.config.image_token_id, TEMPLATES[end], pictures)


def _stored_dtype(folder: str, revision: str | None) -> torch.dtype:
    """Return the precision of the language model's weights, in which all parts are published."""
    from transformers import AutoConfig

    with named_failures(folder, folder):
        config = AutoConfig.from_pretrained(folder, subfolder=LANGUAGE, revision=revision)
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32
