"""The stock arm: which adapter of lmms-eval it is for a checkpoint, and with which arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flmm_plugin.adapters.preserving.stock import shared, with_checkpoint

#: ``model_type`` of a checkpoint -> lmms-eval's own adapter, where one speaks transformers' checkpoints of the family.
#: What is not here, or does not work with the versions that are installed, is answered by plain transformers, and the
#: verdict says so.
ADAPTERS = {"llava": "llava_hf", "llava_next": "llava_hf", "llava_onevision": "llava_hf"}

PLAIN = "plain"

#: Those among them that lmms-eval's adapters do not take.
_PLAIN_ONLY = ("system_prompt", "load_in_4bit", "load_in_8bit")


class StockUnusable(Exception):
    """lmms-eval's adapter cannot be made or cannot answer; not an error of the user's."""


def shared_arguments(given: Mapping[str, Any], default: str) -> dict[str, Any]:
    """Arguments of the stock arm for an F-LMM model's: `shared`, `with_checkpoint`."""
    return with_checkpoint(shared(given), default)


def adapter_for(arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Name of the stock arm for a checkpoint, and why it is no adapter of lmms-eval's, if it is not."""
    from transformers import AutoConfig

    if beyond := [name for name in _PLAIN_ONLY if arguments.get(name)]:
        return PLAIN, f"lmms-eval's adapters take no {beyond[0]}"
    family = AutoConfig.from_pretrained(arguments["pretrained"], revision=arguments.get("revision")).model_type
    if family not in ADAPTERS:
        return PLAIN, f"no adapter of lmms-eval's is known to work for {family} with these versions"
    return ADAPTERS[family], ""


def make_stock(name: str, arguments: Mapping[str, Any], batch_size: int, device: str, force_simple: bool) -> Any:
    """The lmms-eval model of the stock arm.

    Raises:
        StockUnusable: lmms-eval's adapter does not load.
    """
    if name == PLAIN:
        from flmm_plugin.adapters.lmms_eval.preserve_plain import PlainTransformers, PlainTransformersSimple

        kind = PlainTransformersSimple if force_simple else PlainTransformers
        return kind(**{"device": device, **arguments}, batch_size=batch_size)
    from lmms_eval.models import get_model

    options = {"device": device, "device_map": device, "batch_size": batch_size, **arguments}
    try:
        return get_model(name, force_simple)(**options)
    except Exception as exc:  # adapters fail in their own ways: missing packages, arguments of older transformers
        raise StockUnusable(f"{type(exc).__name__}: {' '.join(str(exc).split())}") from exc
