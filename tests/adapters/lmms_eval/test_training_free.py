"""``--model_args heads=<method>``: no file, and the record says so."""

from __future__ import annotations

import pytest

from flmm_plugin.adapters.lmms_eval.classes import FlmmTiny
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.heads.training_free import TrainingFreeHeads


def test_a_method_is_a_model_argument_and_is_recorded() -> None:
    model = FlmmTiny(heads="attend-and-segment", device="cpu")
    assert isinstance(model.lmm.heads, TrainingFreeHeads)
    recorded = model.provenance["heads"]
    assert recorded["data"] == "none: attend-and-segment, nothing is trained"
    assert recorded["prompts"] == "point"
    assert len(recorded["sha256"]) == 64
    with pytest.raises(UnknownArgument, match="did you mean 'localization-heads'"):
        FlmmTiny(heads="localisation-heads", device="cpu")
