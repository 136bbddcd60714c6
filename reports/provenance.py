"""Under which conditions a number was measured, and which of them a result file does not say.

Two numbers may stand side by side unmarked if they agree in everything that changes scores. What a file does not
record is never guessed: it is "not recorded", and a table says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

NOT_RECORDED = ""


@dataclass(frozen=True)
class Provenance:
    """Conditions of one number; every field is text as recorded, "" where the file does not say.

    Attributes:
        commit: Of flmm-plugin, with its version.
        harness: Name and version.
        torch: Version.
        transformers: Version.
        kernel: Attention implementation, e.g. ``sdpa``.
        dtype: Of the LMM, e.g. ``bfloat16``.
        batch_size: Requests per forward pass.
        device: Kind and name.
        processes: Ranks that shared the documents.
        n: Items scored, with the official number where it is known.
        seed: Of sampling and shuffling.
        heads: SHA-256 of the grounding heads' tensors.
        data: Hash of the annotations, or of the questions asked.
        judge: Model that judged answers.
        date: When the run was made.
        file: Where the number stands.
    """

    commit: str = NOT_RECORDED
    harness: str = NOT_RECORDED
    torch: str = NOT_RECORDED
    transformers: str = NOT_RECORDED
    kernel: str = NOT_RECORDED
    dtype: str = NOT_RECORDED
    batch_size: str = NOT_RECORDED
    device: str = NOT_RECORDED
    processes: str = NOT_RECORDED
    n: str = NOT_RECORDED
    seed: str = NOT_RECORDED
    heads: str = NOT_RECORDED
    data: str = NOT_RECORDED
    judge: str = NOT_RECORDED
    date: str = NOT_RECORDED
    file: str = NOT_RECORDED

    def items(self) -> Iterator[tuple[str, str]]:
        """Name and value of every field, in order."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)

    def as_line(self) -> str:
        """All that is recorded, on one line; used as tooltip and in lists of runs."""
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.items() if value)

    def not_recorded(self) -> tuple[str, ...]:
        """Those of `MATTERING` that the file does not say."""
        return tuple(name for name in MATTERING if getattr(self, name) == NOT_RECORDED)


#: What changes scores of the same weights on the same questions; compared between measured rows.
MATTERING = ("kernel", "dtype", "batch_size", "device")


def differences(first: Provenance, second: Provenance) -> tuple[str, ...]:
    """In which of `MATTERING` both say something and do not say the same.

    >>> differences(Provenance(dtype="float32", kernel="sdpa"), Provenance(dtype="bfloat16"))
    ('dtype float32 and bfloat16',)
    """
    pairs = ((name, getattr(first, name), getattr(second, name)) for name in MATTERING)
    return tuple(
        f"{name.replace('_', ' ')} {one} and {other}" for name, one, other in pairs if one and other != one and other
    )


def text(record: Mapping[str, object], *names: str) -> str:
    """The first of ``names`` that the record has, as text; "" if it has none or None."""
    for name in names:
        value = record.get(name)
        if value is not None and value != "":
            return str(value)
    return NOT_RECORDED
