"""Refine masks with SAM's prompt encoder and mask decoder, prompted by the coarse mask and the phrase.

Source: F-LMM (arXiv 2406.05821), section 3.2. Prompts of one phrase: its coarse logits as a mask prompt, the box around
them, and its projected text embeddings as further sparse tokens. The image embedding is SAM's, frozen, made once per
picture and kept by content.

Frames: ``_image`` original pixels [H, W]; ``_sam`` the picture resized to SAM's longer side, padded right and bottom to
its square [S, S]; the mask prompt lives on 4 x the embedding grid (256 x 256 for the official sizes).
Shapes: n phrases, t tokens of a phrase, p prompt width, g x g embedding grid.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from flmm_plugin.errors import BadImage

# Cells of image embedding decoded at once. On a CPU a batch of official size is slower than a loop (its working set
# leaves the cache), on small grids the call overhead dominates; on a GPU batches always win until memory ends.
_CPU_CELLS = 4096
_GPU_CELLS = 16 * 4096


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """SAM's view of one picture.

    Attributes:
        features: SAM's embedding of the picture, ``[1, p, g, g]``.
        input_size: ``(h, w)`` of the resized picture inside the square, _sam frame.
        original_size: ``(H, W)`` of the picture, _image frame.
    """

    features: Tensor
    input_size: tuple[int, int]
    original_size: tuple[int, int]


class MaskRefiner(nn.Module):
    """Refine coarse masks with SAM.

    Args:
        sam: A `Sam` of any size; its image encoder is frozen here.
        use_box: Give the box around the coarse mask as a prompt.
        use_mask: Give the coarse logits as a prompt.
        use_text: Give the phrase's projected text embeddings as prompts.
        use_point: Give the highest coarse logit as a point inside; heads that were trained never do.
        several: Let SAM offer three masks and take the one that it scores best.
        cache_size: Pictures whose embedding is kept; the least recently used goes first.
    """

    def __init__(
        self,
        sam: Sam,
        use_box: bool = True,
        use_mask: bool = True,
        use_text: bool = True,
        *,
        use_point: bool = False,
        several: bool = False,
        cache_size: int = 8,
    ) -> None:
        super().__init__()
        self.sam = sam
        self.use_box, self.use_mask, self.use_text = use_box, use_mask, use_text
        self.use_point, self.several = use_point, several
        self.cache_size = cache_size
        self._cache: OrderedDict[bytes, ImageEmbedding] = OrderedDict()
        self._resize = ResizeLongestSide(self.image_size)
        self.sam.image_encoder.requires_grad_(False)
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            lambda module, keys: module.clear_cache()
        )

    @property
    def image_size(self) -> int:
        """Side S of SAM's square input."""
        return int(self.sam.image_encoder.img_size)

    @property
    def prompt_dim(self) -> int:
        """Width p of a prompt."""
        return int(self.sam.prompt_encoder.embed_dim)

    def train(self, mode: bool = True) -> MaskRefiner:
        """Switch mode; the frozen image encoder stays in evaluation mode."""
        super().train(mode)
        self.sam.image_encoder.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskRefiner:
        self.clear_cache()  # embeddings live on the old device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def clear_cache(self) -> None:
        """Forget all image embeddings; needed after changing the image encoder's weights in place."""
        self._cache.clear()

    def encode_image(self, image: Image.Image) -> ImageEmbedding:
        """Embed a picture, or take the embedding of the same pixels from the cache. No gradients.

        Raises:
            BadImage: The picture has no pixels.
        """
        if image.width < 1 or image.height < 1:
            raise BadImage(f"a picture of {image.width} x {image.height} pixels has nothing to segment")
        pixels = np.asarray(image.convert("RGB"))
        key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        embedding = self._encode(pixels)
        self._cache[key] = embedding
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return embedding

    def preprocess(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[Tensor, tuple[int, int]]:
        """RGB ``uint8[H, W, 3]`` -> normalised, padded ``[1, 3, S, S]`` and the size of the picture in it."""
        sides = self._resize.get_preprocess_shape(pixels.shape[0], pixels.shape[1], self.image_size)
        # SAM's own resizing leaves nothing of a picture that is narrow enough.
        height, width = (max(1, int(side)) for side in sides)
        resized = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        pixels_sam = torch.from_numpy(resized).to(self.sam.pixel_mean.device)
        batch: Tensor = self.sam.preprocess(pixels_sam.permute(2, 0, 1)[None].float())
        return batch, (height, width)

    @torch.no_grad()
    def _encode(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> ImageEmbedding:
        batch, input_size = self.preprocess(pixels)
        features = self.sam.image_encoder(batch.to(next(self.sam.image_encoder.parameters()).dtype))
        return ImageEmbedding(features.float(), input_size, (int(pixels.shape[0]), int(pixels.shape[1])))

    def forward(self, embedding: ImageEmbedding, mask_logits_image: Tensor, text: Sequence[Tensor]) -> Tensor:
        """Refine the masks of one picture.

        The mask prompt carries gradients, the box does not, the image embedding never. As in the released models, the
        padding of the mask prompt is ``min(-1, lowest logit of the call)``: on pictures that are not square a mask
        depends slightly on the others of the same call, so pass together what was trained together.

        Args:
            embedding: The embedding of the picture, from `encode_image`.
            mask_logits_image: Coarse logits ``[n, *, *]`` over the whole picture, at any resolution.
            text: n tensors ``[t_i, p]``; ignored unless ``use_text``.

        Returns:
            Logits ``[n, H, W]``, _image frame, phrases in the order given.
        """
        n = mask_logits_image.shape[0]
        if len(text) != n:
            raise ValueError(f"{n} masks but {len(text)} texts: give one text per mask")
        if n == 0:
            return mask_logits_image.new_zeros((0, *embedding.original_size))
        coarse = mask_logits_image[:, None].float()
        boxes = self.boxes_sam(coarse, embedding) if self.use_box else None
        masks = self.mask_prompts_sam(coarse, embedding) if self.use_mask else None
        points = self.points_sam(coarse, embedding) if self.use_point else None
        words = [t if self.use_text else t[:0] for t in text]
        refined: list[Tensor | None] = [None] * n
        for group in self._groups([int(t.shape[0]) for t in words], embedding):
            logits = self._decode(
                embedding,
                None if boxes is None else boxes[group],
                None if masks is None else masks[group],
                None if points is None else points[group],
                torch.stack([words[i] for i in group]),
            )
            for index, one in zip(group, logits, strict=True):
                refined[index] = one
        return torch.stack([one for one in refined if one is not None])

    def mask_prompts_sam(self, coarse: Tensor, embedding: ImageEmbedding) -> Tensor:
        """Coarse logits ``[n, 1, *, *]`` of the picture -> mask prompts ``[n, 1, 4g, 4g]`` of SAM's square."""
        height, width = embedding.input_size
        padding = min(-1.0, float(coarse.detach().min()))  # before resizing, which does not reach every minimum
        prompt = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        prompt = F.pad(prompt, (0, self.image_size - width, 0, self.image_size - height), value=padding)
        size = self.sam.prompt_encoder.mask_input_size
        return F.interpolate(prompt, size, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def boxes_sam(self, coarse: Tensor, embedding: ImageEmbedding) -> Tensor:
        """Boxes ``[n, 4]`` (x0, y0, x1, y1), _sam frame, around coarse logits; the whole picture for empty ones."""
        height, width = embedding.original_size
        masks = F.interpolate(coarse.sigmoid(), (height, width), mode="bilinear", align_corners=False)[:, 0] > 0.5
        rows, columns = masks.any(dim=2), masks.any(dim=1)
        empty = ~rows.any(dim=1)
        y0, y1 = _extent(rows)
        x0, x1 = _extent(columns)
        boxes = torch.stack([x0, y0, x1, y1], dim=1).to(coarse.dtype)
        boxes[empty] = boxes.new_tensor([0.0, 0.0, width, height])
        scale_y, scale_x = embedding.input_size[0] / height, embedding.input_size[1] / width
        return boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])

    @torch.no_grad()
    def points_sam(self, coarse: Tensor, embedding: ImageEmbedding) -> Tensor:
        """Points ``[n, 2]`` (x, y), _sam frame: middle of the pixel of the highest coarse logit ``[n, 1, *, *]``."""
        height, width = embedding.original_size
        place = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False).flatten(1).argmax(dim=1)
        points = torch.stack([place % width, place // width], dim=1).to(coarse.dtype) + 0.5
        scale_y, scale_x = embedding.input_size[0] / height, embedding.input_size[1] / width
        return points * points.new_tensor([scale_x, scale_y])

    def _groups(self, lengths: list[int], embedding: ImageEmbedding) -> list[list[int]]:
        """Group indices of equal token count, since SAM's decoder masks no padding, few enough to decode at once."""
        cells = int(embedding.features.shape[-1] * embedding.features.shape[-2])
        budget = _CPU_CELLS if embedding.features.device.type == "cpu" else _GPU_CELLS
        at_once = max(1, budget // cells)
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lengths):
            by_length[length].append(index)
        return [group[i : i + at_once] for group in by_length.values() for i in range(0, len(group), at_once)]

    def _decode(
        self,
        embedding: ImageEmbedding,
        boxes: Tensor | None,
        masks: Tensor | None,
        points: Tensor | None,
        text: Tensor,
    ) -> Tensor:
        """One batch of phrases with equal token counts: text ``[n, t, p]`` -> logits ``[n, H, W]``."""
        n = text.shape[0]
        inside = None if points is None else (points[:, None], torch.ones(n, 1, dtype=torch.int, device=points.device))
        sparse, dense = self.sam.prompt_encoder(points=inside, boxes=boxes, masks=masks)
        sparse = torch.cat([sparse.expand(n, -1, -1), text.to(sparse.dtype)], dim=1)
        low, scores = self.sam.mask_decoder(
            image_embeddings=embedding.features,
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense.expand(n, -1, -1, -1),
            multimask_output=self.several,
        )
        if self.several:
            low = low[torch.arange(n, device=low.device), scores.argmax(dim=1)][:, None]
        logits: Tensor = self.sam.postprocess_masks(low, embedding.input_size, embedding.original_size)
        return logits[:, 0]


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and last + 1 true position of each row ``bool[n, k]``; (0, k) for a row without any."""
    first = occupied.int().argmax(dim=1)
    last = occupied.shape[1] - occupied.flip(1).int().argmax(dim=1)
    return first, last
