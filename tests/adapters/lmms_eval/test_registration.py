"""What lmms-eval sees at its start: names and paths, no torch, no exception."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

import pytest

from flmm_plugin.adapters.lmms_eval import models

_START = """
import json, sys
import lmms_eval.models as registry
names = [name for name in registry.list_available_models() if name.startswith("flmm_")]
manifests = {name: registry.get_model_manifest(name) for name in names}
heavy = ("torch", "transformers", "lmms_eval.tasks", "flmm_plugin.grounded_lmm")
print(json.dumps({
    "paths": {name: [one.chat_class_path, one.simple_class_path] for name, one in manifests.items()},
    "heavy": [name for name in heavy if name in sys.modules],
    "waiting": [type(finder).__name__ for finder in sys.meta_path].count("AfterImport"),
}))
"""


def test_the_registry_finds_the_models_without_torch() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _START], capture_output=True, text=True, check=True, timeout=240)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["heavy"] == []
    assert seen["waiting"] == 1
    assert seen["paths"] == {name: [path, f"{path}Simple"] for name, path in models.MODELS.items()}


@pytest.mark.parametrize("path", sorted(models.MODELS.values()))
def test_every_path_leads_to_a_class_of_its_form(path: str) -> None:
    module, name = path.rsplit(".", 1)
    home = importlib.import_module(module)
    assert getattr(home, name).is_simple is False
    assert getattr(home, f"{name}Simple").is_simple is True
    assert getattr(home, f"{name}Simple").__name__ == f"{name}Simple"


def test_a_registry_that_changed_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", None)
    with pytest.warns(UserWarning, match="models are not available"):
        assert models.manifests() == []


def test_manifests_may_be_asked_for_again() -> None:
    def paths() -> list[Any]:
        return [(one.model_id, one.chat_class_path) for one in models.manifests()]

    assert paths() == paths() == list(models.MODELS.items())
