"""The models by the names that every harness knows them by, and what each is without arguments. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Defaults(NamedTuple):
    """What a model's name stands for.

    Attributes:
        pretrained: Folder or hub id of its checkpoint; "" if it must be given.
        heads: ``auto`` where heads are shipped for it, None for chat alone.
        families: Model types (config.json) that it is for; empty: any.
    """

    pretrained: str = ""
    heads: str | None = "auto"
    families: tuple[str, ...] = ()


DEFAULTS: Mapping[str, Defaults] = {
    "flmm_tiny": Defaults("flmm_tiny"),
    "flmm_llava": Defaults("llava-hf/llava-1.5-7b-hf", None, ("llava",)),
    "flmm_llava_next": Defaults("llava-hf/llava-v1.6-vicuna-7b-hf", None, ("llava_next",)),
    "flmm_llava_onevision": Defaults("llava-hf/llava-onevision-qwen2-7b-ov-hf", None, ("llava_onevision",)),
    "flmm_qwen2_5_vl": Defaults("Qwen/Qwen2.5-VL-3B-Instruct", None, ("qwen2_5_vl", "qwen2_vl")),
    "flmm_qwen3_vl": Defaults("Qwen/Qwen3-VL-4B-Instruct", None, ("qwen3_vl",)),
    "flmm_internvl": Defaults("OpenGVLab/InternVL3-8B-hf", None, ("internvl",)),
    "flmm_auto": Defaults("", None),
    "flmm_deepseekvl": Defaults(
        "deepseek-community/deepseek-vl-1.3b-chat", None, ("deepseek_vl", "deepseek_vl_hybrid")
    ),
    "flmm_mgm": Defaults("YanweiLi/MGM-2B", None, ("mgm", "mgm_gemma", "mini_gemini", "mini_gemini_gemma")),
    "flmm_hpt": Defaults("HyperGAI/HPT", None, ("hpt",)),
}


def model_for(family: str) -> str:
    """Name for ``--model`` of a model type, as configurations say it.

    >>> model_for("qwen2_vl"), model_for("paligemma")
    ('flmm_qwen2_5_vl', 'flmm_auto')
    """
    known = {"qwen2_vl": "flmm_qwen2_5_vl"}
    for start, name in (("deepseek_vl", "flmm_deepseekvl"), ("mgm", "flmm_mgm"), ("mini_gemini", "flmm_mgm")):
        if family.startswith(start):
            known[family] = name
    name = known.get(family, f"flmm_{family}")
    return name if name in DEFAULTS else "flmm_auto"
