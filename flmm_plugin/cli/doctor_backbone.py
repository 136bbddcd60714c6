"""``flmm doctor --backbone``: was this model verified with these versions, and is its attention what it should be?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flmm_plugin.errors import CaptureError, FlmmError

if TYPE_CHECKING:
    from flmm_plugin.backbones.base import Backbone
    from flmm_plugin.verification import AttentionFingerprint, Records, Triple

# Name, status and detail of a finding, as in `flmm_plugin.cli.doctor.Finding`.
Found = tuple[str, str, str]

_DEFAULT_KERNEL = "sdpa"


def findings(args: argparse.Namespace) -> Iterator[Found]:
    """Report on one model.

    Args:
        args: ``backbone``, ``attn_implementation``, ``dtype``, ``device`` and ``record``.
    """
    from flmm_plugin.verification import installed_triple, local_folder, read_records

    records = read_records()
    folder = local_folder(args.backbone)
    yield from _triple(args.backbone, folder, installed_triple(args.attn_implementation or _DEFAULT_KERNEL), records)
    if folder is None:
        yield (
            "weights",
            "bad",
            f"{args.backbone} is no folder here and not in the hub cache: its attention was not checked (hf download "
            f"{args.backbone} gets it)",
        )
        return
    yield "weights", "ok", str(folder)
    from flmm_plugin.backbones import load_backbone

    try:
        backbone = load_backbone(
            args.backbone if folder != Path(args.backbone) else folder,
            dtype=args.dtype or "auto",
            device=args.device,
            attn_implementation=args.attn_implementation,
        )
    except FlmmError as exc:
        yield "loading", "bad", " ".join(str(exc).split())
        return
    yield from _checks(backbone, folder, records, record=args.record)


def _triple(name: str, folder: Path | None, triple: Triple, records: Records) -> Iterator[Found]:
    """Was this triple verified for the family of a model?"""
    from flmm_plugin.backbones import family_class, family_of

    try:
        family = family_of(folder if folder is not None else name)
    except FlmmError as exc:
        yield "family", "note", f"unknown without its configuration ({' '.join(str(exc).split())})"
        return
    yield "family", "ok", family
    known = records.of_family(family)
    if not known:  # several model types, and all without a file of their own, share one implementation
        try:
            family = family_class(family, name).family
        except FlmmError as exc:
            yield "triple", "bad", " ".join(str(exc).split())
            return
        known = records.of_family(family)
    for one in known:
        if one.triple == triple:
            yield "triple", "ok", f"{triple}: verified, {one.passed} conformance tests of {family} passed with it"
            return
    verified = "; ".join(str(one.triple) for one in known) or "none"
    yield "triple", "note", f"{triple}: not verified for {family}; verified: {verified}"


def _checks(backbone: Backbone, folder: Path, records: Records, *, record: bool) -> Iterator[Found]:
    from flmm_plugin.verification import ROW_TOLERANCE, FixedInput, weights_id, write_records

    fixed = FixedInput(backbone)
    yield (
        "input",
        "ok",
        f"{len(fixed.slots)} tokens look at {fixed.tokens.slots.numel()} image tokens, {_where(backbone)}",
    )
    untouched = fixed.chat_is_untouched()
    yield (
        "chat",
        "ok" if untouched else "bad",
        "logits are the same bits with capture on" if untouched else "capture changes the logits: a bug, report it",
    )
    rows = fixed.rows()
    limit = ROW_TOLERANCE.get(backbone.dtype, max(ROW_TOLERANCE.values()))
    apart = -1.0
    try:
        apart = fixed.rows_from_eager(rows)
    except CaptureError as exc:
        yield "rows", "note", " ".join(str(exc).split())
    else:
        close = apart <= limit
        yield "rows", "ok" if close else "bad", f"at most {apart:.2g} from the eager kernel's own (limit {limit:.0e})"
    mine = fixed.fingerprint(weights_id(folder), rows, apart)
    good = untouched and apart <= limit
    if record:
        if not good:
            yield "fingerprint", "bad", "not recorded: a check above failed"
            return
        write_records(records.with_fingerprint(mine))
        yield "fingerprint", "ok", f"recorded for {mine.backbone} with {mine.triple}, {mine.dtype}, {mine.device}"
        return
    yield _compared(mine, records)


def _compared(mine: AttentionFingerprint, records: Records) -> Found:
    """This fingerprint beside what was recorded for the same weights, under the nearest conditions."""
    stored = records.of_weights(mine.weights)
    if not stored:
        others = any(one.backbone == mine.backbone for one in records.fingerprints)
        why = "only of other weights of that name" if others else "none for these weights"
        return (
            "fingerprint",
            "note",
            f"{why} is recorded; flmm doctor --backbone {mine.backbone} --record keeps this one",
        )
    nearest = max(
        stored, key=lambda one: (one.triple == mine.triple, one.dtype == mine.dtype, one.device == mine.device)
    )
    recorded = f"recorded with {nearest.triple}, {nearest.dtype}, {nearest.device}"
    difference = mine.differs_from(nearest)
    if difference:
        return "fingerprint", "bad", f"{difference} ({recorded}): masks of these heads may differ here"
    numbers = sum(len(values) for values in mine.numbers.values())
    return "fingerprint", "ok", f"{numbers} numbers agree with those {recorded}"


def _where(backbone: Backbone) -> str:
    return f"{str(backbone.dtype).removeprefix('torch.')} on {backbone.device}"
