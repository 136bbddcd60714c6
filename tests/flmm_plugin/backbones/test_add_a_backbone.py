"""The example of docs/add-a-backbone.md, installed as any package is, and used through its entry point."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flmm_plugin.backbones import families, load_backbone
from flmm_plugin.backbones.auto import AutoBackbone
from flmm_plugin.errors import BackboneUnsupported

Load = Callable[..., Any]
HERE = Path(__file__).parent
PLUGIN = HERE / "example_plugin"
GUIDE = HERE.parents[2] / "docs" / "add-a-backbone.md"


@pytest.fixture(scope="module")
def wheel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built by its build system and unpacked into a folder of its own."""
    pytest.importorskip("setuptools")
    root = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PLUGIN, root / "source")
    build = "import setuptools.build_meta as build, sys; build.build_wheel(sys.argv[1])"
    command = [sys.executable, "-P", "-c", build, str(root)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(root.glob("*.whl"))) as wheel:
        wheel.extractall(root / "site")  # what installing a wheel of pure Python is
    return root / "site"


@pytest.fixture
def installed(wheel_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(wheel_folder, tmp_path / "site"))


def encoded(backbone: Any) -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the image?"}]}]
    return backbone.encode([chat], [[Image.fromarray(pixels)]])


def test_an_installed_package_brings_its_family(
    family_folder: Load, load_family: Load, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, folder = load_family("auto_vipllava"), family_folder("auto_vipllava")
    assert type(before) is AutoBackbone
    monkeypatch.syspath_prepend(installed)
    assert families()["vipllava"] == "flmm_vipllava:VipLlavaBackbone"
    after = load_backbone(folder, device="cpu")
    sys.modules.pop("flmm_vipllava")
    assert type(after).__module__ == "flmm_vipllava"
    assert (after.family, after.facts.attention_maps) == ("vipllava", 8)
    measured, known = encoded(before).image_tokens[0][0], encoded(after).image_tokens[0][0]
    assert torch.equal(measured.slots, known.slots)
    for name in ("scale_y", "scale_x", "offset_y", "offset_x"):
        assert getattr(measured.grid, name) == pytest.approx(getattr(known.grid, name), abs=2.0)


def test_a_broken_package_is_named(family_folder: Load, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (installed / "flmm_vipllava.py").unlink()
    shutil.rmtree(installed / "__pycache__", ignore_errors=True)
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(BackboneUnsupported, match="VipLlavaBackbone"):
        load_backbone(family_folder("auto_vipllava"), device="cpu")


def test_the_guide_shows_this_very_example_in_at_most_forty_lines() -> None:
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL))
    module, project = ((PLUGIN / name).read_text(encoding="utf-8") for name in ("flmm_vipllava.py", "pyproject.toml"))
    assert blocks["python"] == module
    assert blocks["toml"] == project
    assert len((module + project).splitlines()) <= 40
