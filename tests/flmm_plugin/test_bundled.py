"""Models and data that packages ship, found by their entry points."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin import bundled
from flmm_plugin.backbones import family_of
from flmm_plugin.data.root import data_root
from flmm_plugin.errors import DataNotFound
from flmm_plugin.heads import read_manifest


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda **_: ())


@pytest.fixture
def another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = metadata.EntryPoint("their_scenes", f"{__name__}:their_scenes", bundled.DATA_ROOTS)

    def entry_points(group: str, name: str) -> list[metadata.EntryPoint]:
        return [entry] if (group, name) == (bundled.DATA_ROOTS, "their_scenes") else []

    monkeypatch.setattr(metadata, "entry_points", entry_points)


def their_scenes(**options: Any) -> Path:
    return Path("theirs", *map(str, options.values()))


def test_this_package_ships_a_model() -> None:
    shipped = bundled.model(bundled.EMBEDDED)
    assert family_of(shipped.checkpoint()) == family_of(bundled.EMBEDDED)
    assert read_manifest(shipped.heads()).sha256
    assert shipped.sam().is_file()


def test_every_data_root_of_this_package_has_its_entry_point() -> None:
    names = {bundled.SCENES_ROOT, bundled.TRAIN_ROOT, bundled.HELD_OUT_ROOT, bundled.MME_ROOT, bundled.KIT_ROOT}
    found = {entry.name: entry for entry in metadata.entry_points(group=bundled.DATA_ROOTS)}
    assert names <= found.keys()
    assert all(callable(found[name].load()) for name in names)


@pytest.mark.parametrize("name", ["flmm_tny", "org/flmm_tiny", "./flmm_tiny", ""])
def test_other_names_mean_no_shipped_model(name: str) -> None:
    assert not bundled.is_model(name)


@pytest.mark.usefixtures("nothing_installed")
def test_a_package_that_is_not_installed_is_named_with_the_fix() -> None:
    assert bundled.is_model(bundled.EMBEDDED)
    with pytest.raises(DataNotFound, match="reinstall"):
        bundled.model(bundled.EMBEDDED)
    with pytest.raises(DataNotFound, match="reinstall"):
        data_root(bundled.SCENES_ROOT)


@pytest.mark.usefixtures("another_package")
def test_another_package_brings_data_of_its_own(tmp_path: Path) -> None:
    assert data_root("their_scenes") == Path("theirs")
    assert bundled.data_root("their_scenes", scenes=3) == Path("theirs/3")
    assert data_root(tmp_path) == tmp_path
