"""Draw synthetic scenes of flat objects on textured grounds: pictures and exact masks.

A scene is a short list of objects on a 3 x 3 arrangement of places. Objects of the same kind repeat and overlap on
purpose, so that only language ("the small red star at the left") tells them apart. A scene is a description; it can
be rendered at any size, so the picture on disk, the model's input and the exact masks all come from one source.

Frames: object geometry is in the unit square (x right, y down); pictures are ``uint8 [S, S, 3]``; masks are ``bool
[S, S]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.13, 0.62, 0.20),
    "blue": (0.13, 0.25, 0.88),
    "yellow": (0.97, 0.88, 0.10),
    "purple": (0.56, 0.16, 0.72),
    "orange": (0.98, 0.52, 0.06),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.06),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "star", "heart")
SIZES: tuple[str, ...] = ("small", "large")
PLACES: tuple[str, ...] = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
GROUNDS: tuple[str, ...] = ("plain", "stripes", "checks", "gradient", "dots", "waves")

_RADIUS = {"small": (0.095, 0.115), "large": (0.165, 0.195)}
_GROUND_TINTS = np.array([
    (0.62, 0.56, 0.46), (0.45, 0.52, 0.56), (0.52, 0.60, 0.48),
    (0.58, 0.50, 0.56), (0.50, 0.50, 0.50), (0.66, 0.62, 0.58),
])  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One object. ``x``, ``y``, ``radius`` in the unit square; ``place`` indexes :data:`PLACES`."""

    color: str
    shape: str
    size: str
    place: int
    x: float
    y: float
    radius: float
    shade: float

    @property
    def place_name(self) -> str:
        """The words for where it is, e.g. ``"top left"``."""
        return PLACES[self.place]


@dataclass(frozen=True)
class Scene:
    """Objects in painting order (later ones cover earlier ones) and the ground under them."""

    things: tuple[Thing, ...]
    ground: str
    tint: tuple[float, ...]  # red, green, blue in 0..1
    ground_phase: tuple[float, ...]  # three numbers in 0..1
    seed: int

    def in_reading_order(self) -> list[Thing]:
        """Objects row by row, left to right: the order in which captions name them."""
        return sorted(self.things, key=lambda thing: thing.place)


def sample_scene(rng: np.random.Generator, *, min_things: int = 1, max_things: int = 4, repeat: float = 0.45) -> Scene:
    """Draw a scene of ``min_things..max_things`` objects.

    Args:
        rng: Generator of the draws; the scene is a function of its state alone.
        min_things: Lowest number of objects, at least 1.
        max_things: Highest number of objects, at most 9: one per place.
        repeat: Probability that an object copies colour, shape or both from an earlier one.
    """
    count = int(rng.integers(min_things, max_things + 1))
    places = rng.permutation(9)[:count]
    things: list[Thing] = []
    for place in places:
        color = str(rng.choice(list(COLORS)))
        shape = str(rng.choice(SHAPES))
        if things and rng.random() < repeat:
            other = things[int(rng.integers(len(things)))]
            which = rng.random()
            if which < 0.7:
                color = other.color
            if which > 0.3:
                shape = other.shape
        size = str(rng.choice(SIZES))
        radius = float(rng.uniform(*_RADIUS[size]))
        row, column = divmod(int(place), 3)
        x, y = ((np.array([column, row]) + 0.5) / 3 + rng.uniform(-0.055, 0.055, 2)).tolist()
        x, y = (min(max(v, radius + 0.005), 1 - radius - 0.005) for v in (x, y))
        things.append(Thing(color, shape, size, int(place), x, y, radius, float(rng.uniform(0.88, 1.08))))
    tint = np.clip(_GROUND_TINTS[int(rng.integers(len(_GROUND_TINTS)))] + rng.uniform(-0.05, 0.05, 3), 0, 1)
    phase = rng.random(3)
    ground = str(rng.choice(GROUNDS))
    return Scene(tuple(things), ground, tuple(tint.tolist()), tuple(phase.tolist()), int(rng.integers(2**31)))


def _signed_distance(shape: str, u: FloatArray, v: FloatArray) -> FloatArray:
    """Distance to the outline in object units, negative inside; ``u`` right, ``v`` down; rough far away."""
    if shape == "circle":
        return np.asarray(np.hypot(u, v) - 0.95)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(u), np.abs(v)) - 0.80)
    if shape == "triangle":
        return np.asarray(np.maximum(v - 0.72, (np.abs(u) * 1.9 - v - 0.95) / 2.147))
    if shape == "cross":
        arm, reach = 0.36, 0.95
        au, av = np.abs(u), np.abs(v)
        return np.asarray(np.minimum(np.maximum(au - arm, av - reach), np.maximum(au - reach, av - arm)))
    if shape == "star":
        angle = np.arctan2(u, -v)
        sector = 2 * np.pi / 5
        folded = np.abs((angle + sector / 2) % sector - sector / 2)
        radius = np.hypot(u, v)
        px, py = radius * np.cos(folded), radius * np.sin(folded)
        outer, inner = 1.0, 0.45
        ix, iy = inner * np.cos(sector / 2), inner * np.sin(sector / 2)
        ex, ey = ix - outer, iy
        return np.asarray(((px - outer) * ey - py * ex) / np.hypot(ex, ey))
    if shape == "heart":
        a, b = np.abs(u), -v + 0.02
        lobes = np.hypot(a - 0.46, b - 0.38) - 0.50
        return np.asarray(np.minimum(lobes, np.maximum((a - b - 1.20) * 0.7071, np.maximum(b - 0.42, a - 0.90))))
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def _coverage(thing: Thing, size: int, softness: float) -> tuple[slice, slice, FloatArray]:
    """Anti-aliased coverage in 0..1 of one object on its own window of an ``size x size`` picture."""
    half = thing.radius * 1.06 + 2 / size
    x0, x1 = max(int((thing.x - half) * size), 0), min(int((thing.x + half) * size) + 2, size)
    y0, y1 = max(int((thing.y - half) * size), 0), min(int((thing.y + half) * size) + 2, size)
    u = ((np.arange(x0, x1, dtype=np.float32) + 0.5) / size - thing.x) / thing.radius
    v = ((np.arange(y0, y1, dtype=np.float32) + 0.5) / size - thing.y) / thing.radius
    uu, vv = np.broadcast_arrays(u[None, :], v[:, None])
    distance = _signed_distance(thing.shape, uu, vv) * (thing.radius * size)
    return slice(y0, y1), slice(x0, x1), np.clip(0.5 - distance / softness, 0, 1).astype(np.float32)


def _ground(scene: Scene, size: int) -> FloatArray:
    """The textured ground, float ``[S, S, 3]`` in 0..1."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = axis[None, :], axis[:, None]
    a, b, c = scene.ground_phase
    turn = 2 * np.pi * a
    along = np.cos(turn) * x + np.sin(turn) * y
    frequency = 4 + 6 * b
    if scene.ground == "stripes":
        wave = np.sign(np.sin(2 * np.pi * (frequency * along + c)))
    elif scene.ground == "checks":
        wave = np.sign(np.sin(np.pi * frequency * x + 6 * c) * np.sin(np.pi * frequency * y + 6 * a))
    elif scene.ground == "gradient":
        wave = 2 * along - (np.cos(turn) + np.sin(turn))
    elif scene.ground == "dots":
        wave = np.clip(4 * (np.cos(2 * np.pi * frequency * x + c) * np.cos(2 * np.pi * frequency * y + a) - 0.5), -1, 1)
    elif scene.ground == "waves":
        wave = np.sin(2 * np.pi * (frequency * along + 0.15 * np.sin(2 * np.pi * (3 * x + c))))
    else:
        wave = np.zeros((1, 1), np.float32)
    wave = np.broadcast_to(wave, (size, size)).astype(np.float32)
    return np.asarray(np.array(scene.tint, np.float32) * (1 + 0.10 * wave[..., None]), np.float32)


def render(scene: Scene, size: int = 224, *, softness: float = 1.0) -> npt.NDArray[np.uint8]:
    """Paint the scene.

    Args:
        scene: Scene whose ground and objects to paint, in that order.
        size: Side of the square picture in pixels.
        softness: Width of the anti-aliased outline in pixels.

    Returns:
        ``uint8 [size, size, 3]``, RGB.
    """
    canvas = _ground(scene, size)
    for thing in scene.things:
        rows, columns, cover = _coverage(thing, size, softness)
        color = np.array(COLORS[thing.color], np.float32) * thing.shade
        window = canvas[rows, columns]
        window += cover[..., None] * (color - window)
    noise = np.random.default_rng(scene.seed).standard_normal((size, size, 1), dtype=np.float32)
    return np.asarray(np.clip((canvas + 0.02 * noise) * 255, 0, 255), np.uint8)


def visible_masks(scene: Scene, size: int = 224) -> list[BoolArray]:
    """Return the visible pixels of each object (in the order of ``scene.things``), ``bool [size, size]`` each."""
    masks: list[BoolArray] = []
    for thing in scene.things:
        rows, columns, cover = _coverage(thing, size, 1.0)
        mask = np.zeros((size, size), np.bool_)
        mask[rows, columns] = cover > 0.5
        for earlier in masks:
            earlier &= ~mask
        masks.append(mask)
    return masks
