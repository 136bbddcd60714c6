"""Decode attention maps: a small U-Net that reads a stack of attention maps as a segmentation prior.

Source: F-LMM (arXiv 2406.05821), section 3.2. Modules carry the names of released checkpoints, so their state dicts
load as they are: ``encoder.0.0.convs.0.conv.weight``, ``decoder.2.upsample.interp_upsample.1.gn.bias``,
``conv_seg.bias``.

Shapes: n phrases, c maps (layers x heads x maps per image), h x w image-token grid, h' x w' the decoder's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_plugin.errors import HeadsMismatch

STAGES = 4
_STRIDE = 2 ** (STAGES - 1)


class ConvBlock(nn.Module):
    """Convolution without bias, GroupNorm over all channels (one group), ReLU: ``[n, i, h, w] -> [n, o, h, w]``."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.gn = nn.GroupNorm(1, out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return F.relu(cast(Tensor, self.gn(self.conv(x))))


class DoubleConv(nn.Module):
    """Two 3 x 3 blocks: ``[n, i, h, w] -> [n, o, h, w]``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvBlock(in_channels, out_channels, 3), ConvBlock(out_channels, out_channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Apply both blocks."""
        return cast(Tensor, self.convs(x))


class InterpUpsample(nn.Module):
    """Twice the size by bilinear interpolation, then a 1 x 1 block: ``[n, i, h, w] -> [n, o, 2h, 2w]``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.interp_upsample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            ConvBlock(in_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Upsample and mix channels."""
        return cast(Tensor, self.interp_upsample(x))


class UpBlock(nn.Module):
    """One step up: the coarse map upsampled, joined behind the skip connection, two blocks."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = InterpUpsample(in_channels, out_channels)
        self.conv_block = DoubleConv(2 * out_channels, out_channels)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """``skip [n, o, 2h, 2w]``, ``x [n, i, h, w]`` -> ``[n, o, 2h, 2w]``."""
        return cast(Tensor, self.conv_block(torch.cat([skip, self.upsample(x)], dim=1)))


class MaskDecoder(nn.Module):
    """Attention maps to mask logits.

    Args:
        in_channels: Maps per phrase: layers x heads x maps per image of the backbone.
        base_channels: Width of the first stage; 64 in the paper.
        upsample_to: The longer side of the token grid is raised to this many cells before the U-Net.
        normalise: Divide every map by the sum of its absolute values first (those of softmax layers then sum to 1);
            False is the paper's ablation (Figure 5c).
        maps: Indices of the maps that are read (the paper's ablation of layers, Figure 5a); None: all.

    Raises:
        HeadsMismatch: A number in ``maps`` that no map has.
    """

    def __init__(
        self,
        in_channels: int,
        base_channels: int = 64,
        upsample_to: int = 64,
        normalise: bool = True,
        maps: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.base_channels, self.upsample_to = in_channels, base_channels, upsample_to
        self.normalise = normalise
        self.maps = None if maps is None else tuple(maps)
        if self.maps is not None and not all(0 <= one < in_channels for one in self.maps):
            raise HeadsMismatch(
                f"maps {min(self.maps)} to {max(self.maps)} are to be read, of {in_channels} that exist"
            )
        widths = [base_channels * 2**stage for stage in range(STAGES)]
        self.encoder = nn.ModuleList(
            [nn.Sequential(DoubleConv(in_channels if self.maps is None else len(self.maps), widths[0]))]
        )
        for stage in range(1, STAGES):
            self.encoder.append(nn.Sequential(nn.MaxPool2d(2), DoubleConv(widths[stage - 1], widths[stage])))
        self.decoder = nn.ModuleList(UpBlock(widths[stage + 1], widths[stage]) for stage in range(STAGES - 1))
        self.conv_seg = nn.Conv2d(base_channels, 1, 1)
        nn.init.kaiming_normal_(self.conv_seg.weight, nonlinearity="relu")
        nn.init.zeros_(cast(Tensor, self.conv_seg.bias))

    def forward(self, attention: Tensor) -> Tensor:
        """Decode every phrase.

        Args:
            attention: ``[n, c, h, w]``, grid frame, not normalised; >= 0 but for maps of linear layers.

        Returns:
            Logits ``[n, h', w']`` over the same extent, h' = floor(h * s) with s = max(1, upsample_to / max(h, w)).

        Raises:
            HeadsMismatch: c is not the number of maps that this decoder was built for.
        """
        if attention.ndim != 4 or attention.shape[1] != self.in_channels:
            raise HeadsMismatch(
                f"the mask decoder reads [n, {self.in_channels}, h, w] attention maps, got {tuple(attention.shape)}; "
                "use heads that were trained for this backbone"
            )
        if attention.shape[0] == 0:
            scale = self._scale(attention)
            return attention.new_zeros((0, int(attention.shape[2] * scale), int(attention.shape[3] * scale)))
        x, (height, width) = self._prepare(attention.to(self.conv_seg.weight.dtype))
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        for level in reversed(range(STAGES - 1)):
            x = self.decoder[level](skips[level], x)
        return cast(Tensor, self.conv_seg(x[..., :height, :width]))[:, 0]

    def _scale(self, attention: Tensor) -> float:
        return max(1.0, self.upsample_to / max(attention.shape[-2:]))

    def _prepare(self, attention: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Scale every map, upsample, pad with zeros to what three poolings divide; with the size before padding."""
        x = attention if self.maps is None else attention[:, list(self.maps)]
        if self.normalise:
            x = x / x.abs().sum(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
        # Interpolation is faster with channels together in memory; convolutions get them apart (decision 9).
        x = x.contiguous(memory_format=torch.channels_last)
        # scale_factor, not size: on grids that are not square the two place the samples differently, and released
        # heads were trained with this one.
        x = F.interpolate(x, scale_factor=self._scale(attention), mode="bilinear", align_corners=False)
        height, width = x.shape[-2:]
        return F.pad(x.contiguous(), (0, -width % _STRIDE, 0, -height % _STRIDE)), (height, width)
