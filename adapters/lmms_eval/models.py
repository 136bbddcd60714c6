"""The models that lmms-eval learns about: names and class paths, as strings until one is asked for.

lmms-eval loads this at every start, for every user: it imports no torch, and it never raises, because lmms-eval gives
up on all later entry points at the first that does.
"""

from __future__ import annotations

from typing import Any

from flmm_plugin.adapters.answering.defaults import DEFAULTS


def class_name(model: str) -> str:
    """Return the name of a model's class.

    >>> class_name("flmm_llava_next")
    'FlmmLlavaNext'
    """
    return "".join(word.capitalize() for word in model.split("_"))


#: Name for ``--model`` -> class of its chat form, in `flmm_plugin.adapters.lmms_eval.classes`.
MODELS = {name: f"flmm_plugin.adapters.lmms_eval.classes.{class_name(name)}" for name in DEFAULTS}


def manifests() -> list[Any]:
    """Return one `ModelManifest` per model, none where lmms-eval has no manifests; also make the tasks known."""
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
