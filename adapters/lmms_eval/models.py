"""The models that lmms-eval learns about: names and class paths, as strings until one is asked for.

lmms-eval loads this at every start, for every user: it imports no torch, and it never raises, because lmms-eval gives
up on all later entry points at the first that does. A new family is one line in `MODELS`
and one in `flmm_plugin.adapters.answering.defaults`.
"""

from __future__ import annotations

from typing import Any

_HOME = "flmm_plugin.adapters.lmms_eval"

#: Name for ``--model`` -> class of its chat form; the simple form (``--force_simple``) is the class of the same name
#: + "Simple".
MODELS = {
    "flmm_tiny": f"{_HOME}.tiny.FlmmTiny",
    "flmm_llava": f"{_HOME}.llava.FlmmLlava",
    "flmm_llava_next": f"{_HOME}.llava_next.FlmmLlavaNext",
    "flmm_llava_onevision": f"{_HOME}.llava_onevision.FlmmLlavaOnevision",
    "flmm_qwen2_5_vl": f"{_HOME}.qwen_vl.FlmmQwen25VL",
    "flmm_qwen3_vl": f"{_HOME}.qwen_vl.FlmmQwen3VL",
    "flmm_internvl": f"{_HOME}.internvl.FlmmInternVL",
    "flmm_auto": f"{_HOME}.auto.FlmmAuto",
    "flmm_deepseekvl": f"{_HOME}.deepseek_vl.FlmmDeepseekVL",
    "flmm_mgm": f"{_HOME}.mgm.FlmmMGM",
    "flmm_hpt": f"{_HOME}.hpt.FlmmHPT",
}


def manifests() -> list[Any]:
    """One `ModelManifest` per model, none where lmms-eval has no manifests; also makes the plugin's tasks known."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest

        from flmm_plugin.adapters.lmms_eval import task_folder

        task_folder.install()
        return [
            ModelManifest(model_id=name, simple_class_path=f"{path}Simple", chat_class_path=path)
            for name, path in MODELS.items()
        ]
    except Exception as exc:
        import warnings

        warnings.warn(f"flmm-plugin's models are not available: {type(exc).__name__}: {exc}", stacklevel=2)
        return []
