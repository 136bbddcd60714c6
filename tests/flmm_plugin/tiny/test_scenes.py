"""Scenes are a function of their seed, masks are what is painted, and no two objects share a place."""

from __future__ import annotations

import numpy as np
import pytest

from flmm_plugin.tiny import scenes


@pytest.mark.parametrize("seed", range(6))
def test_masks_are_disjoint_and_lie_where_the_words_say(seed: int) -> None:
    scene = scenes.sample_scene(np.random.default_rng(seed), min_things=2)
    masks = scenes.visible_masks(scene, 112)
    assert np.sum(masks, axis=0).max() <= 1
    for thing, mask in zip(scene.things, masks, strict=True):
        row, column = divmod(thing.place, 3)
        ys, xs = np.nonzero(mask)
        assert len(ys) > 60
        assert abs(ys.mean() / 112 - (row + 0.5) / 3) < 0.13
        assert abs(xs.mean() / 112 - (column + 0.5) / 3) < 0.13
    assert len({thing.place for thing in scene.things}) == len(scene.things)


def test_the_same_seed_paints_the_same_picture() -> None:
    first, second = (scenes.sample_scene(np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert np.array_equal(scenes.render(first), scenes.render(second))
    assert not np.array_equal(scenes.render(first), scenes.render(scenes.sample_scene(np.random.default_rng(4))))


def test_painted_pixels_have_the_object_s_colour() -> None:
    scene = scenes.sample_scene(np.random.default_rng(5), min_things=3)
    picture = scenes.render(scene, 224).astype(float) / 255
    for thing, mask in zip(scene.things, scenes.visible_masks(scene, 224), strict=True):
        painted = np.array(scenes.COLORS[thing.color]) * thing.shade
        assert np.abs(np.median(picture[mask], axis=0) - np.clip(painted, 0, 1)).max() < 0.03


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_every_shape_fills_a_good_part_of_its_circle_and_no_more(shape: str) -> None:
    thing = scenes.Thing("red", shape, "large", 4, 0.5, 0.5, 0.19, 1.0)
    scene = scenes.Scene((thing,), "plain", (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), 0)
    (mask,) = scenes.visible_masks(scene, 200)
    ys, xs = np.nonzero(mask)
    reach = np.hypot(xs - 99.5, ys - 99.5).max() / 200 / 0.19
    assert 0.9 < reach < 1.25
    assert 0.3 < mask.sum() / (np.pi * (0.19 * 200) ** 2) < 1.0


def test_an_unknown_shape_is_refused_by_name() -> None:
    thing = scenes.Thing("red", "blob", "large", 4, 0.5, 0.5, 0.19, 1.0)
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        scenes.render(scenes.Scene((thing,), "plain", (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), 0))


def test_scenes_repeat_kinds_and_overlap() -> None:
    drawn = [scenes.sample_scene(np.random.default_rng(i), min_things=3) for i in range(200)]
    twins = sum(len({(t.color, t.shape) for t in s.things}) < len(s.things) for s in drawn)
    covered = 0
    for scene in drawn:
        alone = [scenes.visible_masks(scenes.Scene((t,), *_ground(scene)), 64)[0].sum() for t in scene.things]
        covered += any(m.sum() < a for m, a in zip(scenes.visible_masks(scene, 64), alone, strict=True))
    assert twins > 20
    assert covered > 10


def _ground(scene: scenes.Scene) -> tuple[str, tuple[float, float, float], tuple[float, float, float], int]:
    return scene.ground, scene.tint, scene.ground_phase, scene.seed
