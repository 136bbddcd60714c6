"""All that is trained: attention maps of a frozen model to masks. Knows segment-anything, not transformers."""

from __future__ import annotations

from flmm_plugin.heads.checkpoint import load_heads, read_manifest, save_heads
from flmm_plugin.heads.grounding_heads import GroundingHeads, HeadOutput
from flmm_plugin.heads.keyword_selector import KeywordSelector
from flmm_plugin.heads.manifest import BackboneFacts, HeadsManifest
from flmm_plugin.heads.mask_decoder import MaskDecoder
from flmm_plugin.heads.mask_refiner import ImageEmbedding, MaskRefiner
from flmm_plugin.heads.sam import build_sam

__all__ = [
    "BackboneFacts",
    "GroundingHeads",
    "HeadOutput",
    "HeadsManifest",
    "ImageEmbedding",
    "KeywordSelector",
    "MaskDecoder",
    "MaskRefiner",
    "build_sam",
    "load_heads",
    "read_manifest",
    "save_heads",
]
