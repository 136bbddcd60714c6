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
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from flmm_plugin.errors import BadImage
from flmm_plugin.resampling import Axis, PlacedMaps, interpolated

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
        resized = self._resized(image)
        # What SAM sees names the picture: much less to hash than the picture itself.
        key = hashlib.sha256(repr((image.size, resized.shape)).encode() + resized.tobytes()).digest()
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        embedding = self._encode(resized, (image.height, image.width))
        self._cache[key] = embedding
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return embedding

    def preprocess(self, image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """Resize, normalise and pad a picture to ``[1, 3, S, S]``; also return the size of the picture in it."""
        resized = self._resized(image)
        return self._normalised(resized), (resized.shape[0], resized.shape[1])

    def _resized(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        sides = self._resize.get_preprocess_shape(image.height, image.width, self.image_size)
        # SAM's own resizing leaves nothing of a picture that is narrow enough.
        height, width = (max(1, int(side)) for side in sides)
        return np.array(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))

    def _normalised(self, resized: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
        pixels_sam = torch.from_numpy(resized).to(self.sam.pixel_mean.device)
        batch: Tensor = self.sam.preprocess(pixels_sam.permute(2, 0, 1)[None].float())
        return batch

    @torch.no_grad()
    def _encode(self, resized: np.ndarray[Any, np.dtype[np.uint8]], original_size: tuple[int, int]) -> ImageEmbedding:
        batch = self._normalised(resized)
        features = self.sam.image_encoder(batch.to(next(self.sam.image_encoder.parameters()).dtype))
        return ImageEmbedding(features.float(), (resized.shape[0], resized.shape[1]), original_size)

    def forward(self, embedding: ImageEmbedding, coarse: PlacedMaps, text: Sequence[Tensor]) -> PlacedMaps:
        """Refine the masks of one picture.

        The mask prompt carries gradients, the box does not, the image embedding never. As in the released models, the
        padding of the mask prompt is ``min(-1, lowest logit of the call)``: on pictures that are not square a mask
        depends slightly on the others of the same call, so pass together what was trained together.

        Args:
            embedding: The embedding of the picture, from `encode_image`.
            coarse: Coarse logits, n maps placed on the picture.
            text: n tensors ``[t_i, p]``; ignored unless ``use_text``.

        Returns:
            Logits, n maps of the mask prompt's resolution placed on the picture, phrases in the order given.
        """
        n = len(coarse)
        if len(text) != n:
            raise ValueError(f"{n} masks but {len(text)} texts: give one text per mask")
        if n == 0:
            return self._placed(coarse.maps.new_zeros((0, *self.sam.prompt_encoder.mask_input_size)), embedding)
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
        return self._placed(torch.stack([one for one in refined if one is not None]), embedding)

    def _placed(self, low: Tensor, embedding: ImageEmbedding) -> PlacedMaps:
        """Place SAM's masks ``[n, 4g, 4g]`` of its square on the picture, as `Sam.postprocess_masks` resizes them."""
        sides = zip(low.shape[-2:], embedding.input_size, embedding.original_size, strict=True)
        rows, columns = (_from_square(cells, self.image_size, *pair) for cells, *pair in sides)
        return PlacedMaps(low, rows, columns)

    def mask_prompts_sam(self, coarse: PlacedMaps, embedding: ImageEmbedding) -> Tensor:
        """Coarse logits of the picture -> mask prompts ``[n, 1, 4g, 4g]`` of SAM's square.

        The picture is resized and padded, and the square made smaller: of all that, one matrix for each axis is left.
        """
        maps = coarse.maps.float()
        padding = min(-1.0, float(maps.detach().min()) if coarse.stretched else coarse.lowest())
        size = self.sam.prompt_encoder.mask_input_size
        axes = zip((coarse.rows, coarse.columns), maps.shape[-2:], embedding.input_size, size, strict=True)
        (down, top, y), (across, left, x) = (
            (part.to(maps.device) for part in _to_square(None if coarse.stretched else axis, *sides, self.image_size))
            for axis, *sides in axes
        )
        picture, seen = torch.outer(y, x), torch.outer(top, left)
        prompt = down @ maps @ across.T + coarse.fill * (picture - seen) + padding * (1 - picture)
        return prompt[:, None]

    @torch.no_grad()
    def boxes_sam(self, coarse: PlacedMaps, embedding: ImageEmbedding) -> Tensor:
        """Boxes ``[n, 4]`` (x0, y0, x1, y1), _sam frame, around coarse logits; the whole picture for empty ones."""
        height, width = embedding.original_size
        # As released: probabilities, not logits, of a map that is stretched over the picture.
        likely = replace(coarse, maps=coarse.maps.float().sigmoid()) if coarse.stretched else coarse
        rows, columns = likely.above(0.5 if coarse.stretched else 0.0)
        empty = ~rows.any(dim=1)
        y0, y1 = _extent(rows)
        x0, x1 = _extent(columns)
        boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
        boxes[empty] = boxes.new_tensor([0.0, 0.0, width, height])
        scale_y, scale_x = embedding.input_size[0] / height, embedding.input_size[1] / width
        return boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])

    @torch.no_grad()
    def points_sam(self, coarse: PlacedMaps, embedding: ImageEmbedding) -> Tensor:
        """Points ``[n, 2]`` (x, y), _sam frame: middle of the pixel of the highest coarse logit."""
        height, width = embedding.original_size
        place = coarse.image().flatten(1).argmax(dim=1)
        points = torch.stack([place % width, place // width], dim=1).float() + 0.5
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
        """One batch of phrases with equal token counts: text ``[n, t, p]`` -> logits ``[n, 4g, 4g]``."""
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
        logits: Tensor = low[:, 0]
        return logits


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and last + 1 true position of each row ``bool[n, k]``; (0, k) for a row without any."""
    first = occupied.int().argmax(dim=1)
    last = occupied.shape[1] - occupied.flip(1).int().argmax(dim=1)
    return first, last


@lru_cache(maxsize=32)
def _from_square(cells: int, square: int, inside: int, pixels: int) -> Axis:
    """Return the axis that takes SAM's masks to the picture: up to the square, cut to the picture's part, resized."""
    up = interpolated(torch.eye(cells), square)[:, :inside]
    return Axis(interpolated(up, pixels).T.contiguous(), torch.ones(pixels, dtype=torch.bool))


@lru_cache(maxsize=32)
def _to_square(axis: Axis | None, cells: int, inside: int, size: int, square: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return how the mask prompt is mixed along one axis.

    Args:
        axis: From cells to pixels; None: the cells are resized themselves.
        cells: Number of cells of the coarse logits, k.
        inside: Length of the picture in SAM's square.
        size: Length of the mask prompt, 4g.
        square: Side S of SAM's square.

    Returns:
        The weights of the cells ``[4g, k]``, and how much of each place of the prompt, 0 to 1, lies on what the map
        reaches and on the picture, ``[4g]`` each.
    """
    weights = torch.eye(cells) if axis is None else axis.weights.T
    seen = torch.ones(weights.shape[1]) if axis is None else axis.seen.float()
    mixed = interpolated(torch.cat([weights, seen[None], torch.ones_like(seen)[None]]), inside)
    mixed = interpolated(F.pad(mixed, (0, square - inside)), size)
    return mixed[:cells].T.contiguous(), mixed[cells], mixed[cells + 1]
