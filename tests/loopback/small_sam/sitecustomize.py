"""Make segment_anything's ``vit_l`` small in every interpreter of a test: its own modules, other numbers.

Meta's file takes 1.2 GB and its encoder a minute per picture on a CPU. Layout, names of tensors and the width of the
prompts stay. A ``sitecustomize`` further down the path is read as well.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from functools import partial
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_MODULE = "segment_anything.build_sam"

SIDE, PATCH, WIDTH = 256, 16, 256


def small_vit_l(checkpoint=None):
    """Build `Sam` as ``build_sam_vit_l`` does, with an encoder of one layer and a narrow decoder."""
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid = SIDE // PATCH
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=1, embed_dim=32, img_size=SIDE, mlp_ratio=4, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2, patch_size=PATCH, qkv_bias=True, use_rel_pos=True, global_attn_indexes=[0], window_size=14,
            out_chans=WIDTH,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH, image_embedding_size=(grid, grid), input_image_size=(SIDE, SIDE), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=8),
            transformer_dim=WIDTH, iou_head_depth=3, iou_head_hidden_dim=WIDTH,
        ),
    )  # fmt: skip
    if checkpoint is not None:
        sam.load_state_dict(torch.load(checkpoint, weights_only=True))
    return sam.eval()


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for `segment_anything`, so that an interpreter without need of it does not import torch."""

    def find_spec(self, name, path, target=None):
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def run_and_change(module):
            run(module)
            module.build_sam_vit_l = module.sam_model_registry["vit_l"] = small_vit_l

        spec.loader.exec_module = run_and_change
        return spec


def _run_the_next_one():
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Finder())
    _run_the_next_one()
