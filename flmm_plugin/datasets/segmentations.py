"""COCO's segmentations: polygons and run-length codes, read as one run-length code of the picture's size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycocotools import mask as coco_mask

from flmm_plugin.datasets.json_files import STRANGE, coordinate
from flmm_plugin.errors import BadAnnotation
from flmm_plugin.records import checked_rle

SMALLEST_POLYGON = 6  # numbers: a triangle


def segmentation_rle(segmentation: Any, height: int, width: int, where: str = "segmentation") -> dict[str, Any]:
    """Read any of COCO's segmentation forms as one run-length code: the union of its parts.

    Peers *add* the parts of an object, so that pixels under two overlapping polygons count as 2 and are dropped by
    some of them; mmdetection, which the paper's evaluation uses, merges. Polygons with fewer than 6 numbers are
    ignored, and an object with nothing left is an empty mask, as there.

    Raises:
        BadAnnotation: No form of COCO's; the message starts with `where`.
    """
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if not isinstance(parts, list):
        raise BadAnnotation(
            f"{where}: a segmentation is a list of polygons or a run-length code, got {type(parts).__name__}"
        )
    codes = []
    for part in parts:
        if isinstance(part, dict):
            codes.append(_checked_code(part, height, width, where))
        elif (polygon := _checked_polygon(part, where)) is not None:
            codes.extend(coco_mask.frPyObjects([polygon], height, width))
    if not codes:
        codes = [_checked_code({"size": [height, width], "counts": [height * width]}, height, width, where)]
    merged = coco_mask.merge(codes)
    return {"size": [height, width], "counts": merged["counts"].decode("ascii")}


def has_pixels(code: Mapping[str, Any]) -> bool:
    """Tell whether a run-length code of `segmentation_rle` covers anything."""
    return bool(coco_mask.area({**code, "counts": code["counts"].encode("ascii")}))


def _checked_polygon(part: Any, where: str) -> list[float] | None:
    """Read one polygon ``[x0, y0, x1, y1, ...]``; None if it has too few points to enclose anything."""
    if not isinstance(part, list | tuple):
        raise BadAnnotation(f"{where}: a polygon is a flat list of numbers x0, y0, x1, y1, ..., not {part!r}")
    try:
        numbers = [coordinate(one) for one in part]
    except STRANGE as exc:
        raise BadAnnotation(f"{where}: a polygon is a flat list of numbers: {exc}; fetch the file again") from exc
    if len(numbers) < SMALLEST_POLYGON:
        return None
    if len(numbers) % 2:
        raise BadAnnotation(f"{where}: a polygon of {len(numbers)} numbers has an x without its y")
    return numbers


def _checked_code(code: Mapping[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
    """Read a run-length code for pycocotools, which crashes on codes that nobody has checked."""
    try:
        checked = checked_rle(code, (height, width))
    except BadAnnotation as exc:
        raise BadAnnotation(f"{where}: {exc}") from exc
    return {**checked, "counts": checked["counts"].encode("ascii")}
