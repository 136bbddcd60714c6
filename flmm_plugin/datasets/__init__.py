"""Readers of data sets in the layouts that their makers released."""

from __future__ import annotations

from flmm_plugin.datasets.refer import OFFICIAL_SIZES, ReferDataset, ReferItem, SplitSize

__all__ = ["OFFICIAL_SIZES", "ReferDataset", "ReferItem", "SplitSize"]
