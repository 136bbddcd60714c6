"""Read RefCOCO-M: the expressions of RefCOCO's validation split with masks that were drawn anew.

The hub's data set holds parquet files: one row per picture, with ``image``, ``image_id``, ``file_name``, and
``samples``, each with ``id``, ``sentences`` and a run-length code ``mask``. The pictures are written as files once,
beside the data, since whoever answers opens files. Masks are ``bool[H, W]`` in the image frame.

Layout under a root (``FLMM_DATA``, default ``data/``)::

    <root>/moondream/refcoco-m/data/validation-*.parquet
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flmm_plugin import files
from flmm_plugin.data.registry import Hub, Part
from flmm_plugin.data.root import data_root
from flmm_plugin.datasets.json_files import fields_of, integer, text_of
from flmm_plugin.datasets.phrases import PhraseItem
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.reader import SplitReader
from flmm_plugin.datasets.segmentations import has_pixels
from flmm_plugin.errors import BadAnnotation, DataNotFound
from flmm_plugin.images import Orientation
from flmm_plugin.records import checked_rle
from flmm_plugin.text_checks import has_words

NAME = "refcoco-m"
REPO = "moondream/refcoco-m"

#: Pictures, objects and expressions, as its page and FiftyOne's copy of it state them.
PICTURES, OBJECTS, EXPRESSIONS = 1190, 2080, 5598

#: How pictures are opened: the pixels are stored as they were annotated.
ORIENTATION: Orientation = "stored"

PART = Part(f"{REPO} (parquet)", (REPO,), "MIT (its page)", Hub(REPO, REPO, ("data/*", "README.md"), 609559173))


class RefcocoMDataset(SplitReader[PhraseItem]):
    """The expressions of the one split, ``validation``, in file order.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.

    Raises:
        DataNotFound: There are no files; the message says how to get them.
        BadAnnotation: A file is damaged, or no such data set.
        OutputFailed: The pictures cannot be written beside the data.
    """

    def __init__(self, root: str | os.PathLike[str] | None) -> None:
        folder = data_root(root)
        home = PART.path(folder, NAME)
        self.tables = tuple(sorted((home / "data").glob("validation-*.parquet")))
        if not self.tables:
            raise DataNotFound(
                f"no validation-*.parquet in {home / 'data'}; get it with: flmm data download {NAME} --root '{folder}'"
            )
        self.picture_folder = folder / files.WORKPLACE / "pictures" / NAME
        super().__init__(folder, NAME, PhraseItem, self.tables, places=(self.picture_folder,))
        missing = {item.image_path for item in self if not item.image_path.is_file()}
        if missing:
            self._write(missing)

    def _read(self, problems: list[Problem]) -> tuple[Iterable[PhraseItem], dict[str, Any]]:
        return self._expressions(problems), {}

    def _expressions(self, problems: list[Problem]) -> Iterator[PhraseItem]:
        for row in self._rows(("image_id", "file_name", "samples")):
            where = f"picture {row.get('file_name')} of {self.tables[0].parent}"
            with fields_of(where, "get the data set again"):
                image_id = integer(row["image_id"])
                path = self.picture_folder / f"{image_id}.png"
                for sample in row["samples"]:
                    number, code = integer(sample["id"]), checked_rle(sample["mask"])
                    height, width = code["size"]
                    if not has_pixels(code):
                        problems.append(Problem("object without a pixel; its target is empty", f"{where}, {number}"))
                    for sentence in sample["sentences"]:
                        if not has_words(text_of(sentence)):
                            problems.append(Problem("sentence without words, left out", f"{where}, {number}", 1))
                            continue
                        yield PhraseItem(image_id, path, height, width, sentence, (number,), (code,))

    def _rows(self, columns: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of all files, a few at a time: a picture is half a megabyte."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in self.tables:
            try:
                for batch in pq.ParquetFile(path).iter_batches(batch_size=16, columns=list(columns)):
                    yield from batch.to_pylist()
            except (OSError, ValueError, pa.ArrowException) as exc:
                raise BadAnnotation(f"{path} is damaged ({exc}); delete it and download again") from exc

    def _write(self, missing: set[Path]) -> None:
        """Write pictures as files, each whole or not at all."""
        files.make_folder(self.picture_folder)
        for row in self._rows(("image_id", "image")):
            with fields_of(f"a picture of {self.tables[0].parent}", "get the data set again"):
                path: Path = self.picture_folder / f"{integer(row['image_id'])}.png"
                content = row["image"]["bytes"]
            if path in missing and isinstance(content, bytes):
                with files.new_file(path, durable=False) as part:
                    part.write_bytes(content)
