"""HPT's projector, an "H-Former": the one part of the paper's ten LMMs whose code is only in its own repository.

It is loaded from there, when the user says so and from a revision that the user pinned; nothing of it is in this
package, and none of it was read while this was written. It was published for transformers 4, so what that version had
and this one lacks is lent to it (`lent_names`), and its weights are loaded here, strictly, past machinery that expects
newer code. On loading it is shown zeros once: it must answer with one token per patch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flmm_plugin.backbones.loading import named_failures, refuse_incomplete
from flmm_plugin.errors import BackboneUnsupported

#: Folder of the projector in the repository.
FOLDER = "projector"

_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_projector(
    folder: str, *, name: str, revision: str | None, trust_remote_code: bool, dtype: torch.dtype
) -> nn.Module:
    """Load the projector with its own code.

    Args:
        folder: The repository: a hub name, or a folder that holds `FOLDER`.
        name: How the user called it.
        revision: For a hub name, the commit whose code was read: 40 hexadecimal digits.
        trust_remote_code: Whether the user wants that code to run.
        dtype: Precision that its weights are converted to.

    Raises:
        BackboneUnsupported: Not opted in, or not pinned, or its code does not run here.
        BadCheckpoint: Its weights do not fit its code.
    """
    local = Path(folder).is_dir()
    if not trust_remote_code or not (local or _COMMIT.fullmatch(revision or "")):
        raise BackboneUnsupported(_how_to_opt_in(folder, name, revision, local))
    place = Path(folder) / FOLDER if local else _fetched(folder, name, revision)
    with lent_names(), named_failures(f"{name}/{FOLDER}", str(place)):
        from transformers import AutoConfig
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        config = AutoConfig.from_pretrained(place, trust_remote_code=True)
        reference = (getattr(config, "auto_map", None) or {}).get("AutoModel")
        if reference is None:
            raise ValueError("its config.json names no AutoModel in auto_map")
        try:
            projector = get_class_from_dynamic_module(reference, str(place))(config)
        except (AttributeError, TypeError, KeyError, RuntimeError) as exc:
            raise BackboneUnsupported(
                f"the code of {name}'s projector does not run with this transformers ({type(exc).__name__}: {exc}); "
                "use a version of transformers that it was published for"
            ) from exc
    _lend_methods(projector)
    _load_weights(projector, place, name)
    return cast("nn.Module", projector.to(dtype).eval())


def check_projector(projector: nn.Module, *, patches: int, visual_size: int, hidden_size: int, name: str) -> None:
    """Show it zeros: it must make one token of the language model's size per patch.

    Raises:
        BackboneUnsupported: It makes something else, so that its tokens lie on no known grid.
    """
    like = next(projector.parameters())
    with torch.no_grad():
        out = projector(torch.zeros(1, patches, visual_size, dtype=like.dtype, device=like.device))
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if shape != (1, patches, hidden_size):
        raise BackboneUnsupported(
            f"the projector of {name} makes {shape} of {patches} patches; (1, {patches}, {hidden_size}) was expected, "
            "one token per patch: without that its tokens lie on no grid, so pin the revision that HPT was released as"
        )


@contextmanager
def lent_names() -> Iterator[None]:
    """Names that code for transformers 4 imports and that this transformers lacks, for the length of the block."""
    import transformers.modeling_utils
    import transformers.pytorch_utils

    lent: dict[str, Any] = {
        "find_pruneable_heads_and_indices": _no_pruning,
        "prune_linear_layer": _no_pruning,
        "apply_chunking_to_forward": getattr(transformers.pytorch_utils, "apply_chunking_to_forward", _unchunked),
    }
    places: list[Any] = [transformers.modeling_utils, transformers.pytorch_utils]
    missing = [(place, key) for place in places for key in lent if not hasattr(place, key)]
    model = transformers.modeling_utils.PreTrainedModel
    # Code that ends its constructor with `init_weights` has no list of tied weights, which this version wants then.
    classes = [] if hasattr(model, "all_tied_weights_keys") else [(model, "all_tied_weights_keys")]
    try:
        for place, key in missing:
            setattr(place, key, lent[key])
        for place, key in classes:
            setattr(place, key, {})
        yield
    finally:
        for place, key in [*missing, *classes]:
            delattr(place, key)


def _lend_methods(projector: nn.Module) -> None:
    """Methods of transformers 4's models that the projector's own classes call on themselves."""
    from transformers import PreTrainedModel

    lent = {"invert_attention_mask": _inverted_mask, "get_head_mask": _head_mask}
    for module in projector.modules():
        if isinstance(module, PreTrainedModel):
            for key, method in lent.items():
                if not hasattr(module, key):
                    setattr(type(module), key, method)


def _load_weights(projector: nn.Module, place: Path, name: str) -> None:
    from safetensors.torch import load_file

    files = sorted(place.glob("*.safetensors"))
    if not files:
        raise BackboneUnsupported(f"there are no safetensors in {FOLDER}/ of {name}; fetch the repository again")
    with named_failures(name, str(place)):
        stored = {key: value for file in files for key, value in load_file(file).items()}
        own = projector.state_dict()
        shapes = [key for key, value in stored.items() if key in own and own[key].shape != value.shape]
        refuse_incomplete(f"{name}/{FOLDER}", own.keys() - stored.keys(), stored.keys() - own.keys(), shapes)
        projector.load_state_dict({key: stored[key] for key in own}, strict=True)


def _fetched(folder: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    with named_failures(name, folder):
        return Path(snapshot_download(folder, revision=revision, allow_patterns=[f"{FOLDER}/*"])) / FOLDER


def _how_to_opt_in(folder: str, name: str, revision: str | None, local: bool) -> str:
    if local:
        files = ", ".join(sorted(path.name for path in (Path(folder) / FOLDER).glob("*.py"))) or "no .py file"
        return (
            f"{name} cannot be loaded without running code of its own: its projector ({FOLDER}/: {files}). Read that "
            "code, then pass trust_remote_code=True"
        )
    found = _COMMIT.fullmatch(revision or "") and revision
    pin = found or _commit_of(folder, revision) or "<the 40 digits of the commit that you read>"
    return (
        f"{name} cannot be loaded without running code from its hub repository: its projector ({FOLDER}/*.py). Read "
        f"that code at one commit, then pass trust_remote_code=True and revision={pin}, so that no other code runs"
    )


def _commit_of(folder: str, revision: str | None) -> str | None:
    """The commit that a branch or tag stands for now, where the hub (or its cache) can be asked."""
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(folder, revision=revision, subfolder=FOLDER)
    except (OSError, ValueError):
        return None
    return cast("str | None", config.get("_commit_hash"))


def _no_pruning(*_: Any, **__: Any) -> Any:
    raise BackboneUnsupported("attention heads of a frozen projector are not pruned; leave pruned_heads empty")


def _unchunked(forward: Any, chunk_size: int, chunk_dim: int, *tensors: Tensor) -> Any:
    """Chunks save memory in training; a frozen projector runs in one piece."""
    return forward(*tensors)


def _inverted_mask(self: Any, encoder_attention_mask: Tensor) -> Tensor:
    """1 = visible, ``[b, k]`` or ``[b, l, k]``, to what is added to scores, broadcast over heads."""
    mask = encoder_attention_mask
    mask = mask[:, None] if mask.dim() == 3 else mask[:, None, None]
    dtype = next(self.parameters()).dtype
    return (1.0 - mask.to(dtype)) * torch.finfo(dtype).min


def _head_mask(self: Any, head_mask: Tensor | None, num_hidden_layers: int, *_: Any, **__: Any) -> list[None]:
    """One entry per layer, all None: a frozen projector keeps its heads."""
    if head_mask is not None:
        raise BackboneUnsupported("a frozen projector runs with all its heads; leave head_mask out")
    return [None] * num_hidden_layers
