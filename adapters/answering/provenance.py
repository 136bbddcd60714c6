"""Record how a model was loaded, and by which versions, to stand beside its numbers."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flmm_plugin
from flmm_plugin.content_hashes import versions
from flmm_plugin.devices import device_name

# Name in the record -> package.
_PACKAGES = {
    "lmms_eval": "lmms-eval",
    "vlmeval": "ms-vlmeval",
    "torch": "torch",
    "transformers": "transformers",
    "numpy": "numpy",
}


def record_of(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return versions, weights, kernel, dtype, device, heads and options of a loaded model; None for what is lacking.

    Args:
        model: A loaded model of either evaluation tool: an object with ``lmm``, ``batch_size`` and ``world_size``.
        arguments: Model arguments by name, as they were given.
    """
    lmm = model.lmm
    backbone, heads = getattr(lmm, "backbone", None), getattr(lmm, "heads", None)
    installed = versions(_PACKAGES.values())
    named = {name: installed[package] for name, package in _PACKAGES.items() if package in installed}
    return {
        "versions": {"flmm_plugin": flmm_plugin.__version__, "python": platform.python_version(), **named},
        "commit": commit(),
        "backbone": _said(backbone, "name"),
        "family": _said(backbone, "family"),
        "revision": _said(backbone, "revision"),
        "weights_seal": _said(getattr(lmm, "seal", None), "digest"),
        "preprocessing": _said(backbone, "preprocessing"),
        "grounding_pixels": _said(backbone, "grounding_pixels"),
        "kernel": _said(backbone, "kernel"),
        "dtype": (_said(backbone, "dtype") or "").removeprefix("torch.") or None,
        "device": device_name(getattr(backbone, "device", None)),
        "batch_size": model.batch_size,
        "processes": model.world_size,
        "heads": None if heads is None else _heads(heads, lmm.merge),
        "visual_cot": _visual_cot(model, backbone),
        "options": {name: str(value) for name, value in arguments.items() if value is not None},
    }


def _said(thing: Any, name: str) -> str | None:
    value = getattr(thing, name, None)
    return None if value is None else str(value)


@functools.cache
def commit() -> str | None:
    """Return the commit of this package, ending in ``-dirty`` if it was changed; None outside its repository."""
    source = Path(flmm_plugin.__file__).resolve()

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(source.parent), *words], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An environment may lie inside another project's repository, which does not track this file.
    if git("ls-files", "--error-unmatch", source.name) is None:
        return None
    head = git("rev-parse", "HEAD")
    return f"{head}-dirty" if head and git("status", "--porcelain", "--untracked-files=no", ":/") else head


def _heads(heads: Any, merge: str) -> dict[str, Any]:
    manifest = heads.manifest
    prompts = manifest.sam_prompts if heads.mask_refiner is not None else {}
    return {
        "sha256": manifest.sha256,
        "backbone": manifest.backbone,
        "data": manifest.data,
        "created_by": manifest.created_by,
        "source": manifest.notes.get("source"),
        "released": manifest.notes.get("source_file") or manifest.notes.get("converted_from"),
        "sam": manifest.sam if isinstance(manifest.sam, str) else "small" if manifest.sam else None,
        "prompts": " + ".join(name for name in ("mask", "box", "text", "point") if prompts.get(name)) or "no refiner",
        "merge": merge,
    }


def _visual_cot(model: Any, backbone: Any) -> dict[str, Any] | None:
    """Return the mode of a visual chain of thought for stock questions, None without one."""
    mode = getattr(model, "visual_cot", None)
    found: dict[str, Any] | None = mode.facts(bool(getattr(backbone, "several_images", False))) if mode else None
    return found
