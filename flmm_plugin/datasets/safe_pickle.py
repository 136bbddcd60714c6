"""Read a pickle as data: containers, strings and numbers, and nothing that could run.

The ``refs(...).p`` files of RefCOCO are pickles that Python 2 wrote. What they hold (lists, dicts, unicode strings,
ints) has opcodes of its own in every protocol: such a file never names a global. A pickle that does is asking to
import and call something, so no name at all is allowed here, not even a harmless one; without a callable, no other
opcode can run code.

What a file may ask for is bounded by its size. Python's own unpickler is used and not the quicker one in C, which gives
memory for every number of the memo that a file names; and what refers to itself, or to one list so often that its
content exceeds the file many times over, is refused.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from flmm_plugin.errors import BadAnnotation, DataNotFound, UnsafePickle
from flmm_plugin.file_kinds import kind_of

_DEEPEST = 16  # containers in containers; refs have 5
_TIMES = 64  # what a file may hold, in entries and characters per byte: a key that is written once is in every record


_OFFICIAL = "get it from its official source"


class _DataUnpickler(pickle._Unpickler):
    """An unpickler that refuses every global, and with it every call."""

    source: Path
    dispatch = dict(pickle._Unpickler.dispatch)  # noqa: RUF012 - as its base has it

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise UnsafePickle(
            f"{self.source} asks to import `{module_name}.{global_name}`; nothing of it was executed. Annotation "
            "pickles hold plain lists, dicts, strings and numbers: get the file from its official source, or, if you "
            "made it, save it again without objects (numpy numbers as int/float)"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise UnsafePickle(f"{self.source} refers to an outside object {pid!r}; nothing of it was executed")


def _without_tuples(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make an opcode refuse a tuple that holds another: the hash of a deep one overflows Python's stack."""

    def made(self: Any) -> None:
        load(self)
        if any(isinstance(one, tuple) for one in self.stack[-1]):
            raise UnsafePickle(f"{self.source} has tuples in tuples, which no annotations have; {_OFFICIAL}")

    return made


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _DataUnpickler.dispatch[_opcode[0]] = _without_tuples(_DataUnpickler.dispatch[_opcode[0]])
# Bytes that can be changed are no data of annotations, and get their memory before they are read.
del _DataUnpickler.dispatch[pickle.BYTEARRAY8[0]]


def load_data_pickle(path: Path) -> Any:
    """Unpickle `path`, which may hold plain data only.

    Byte strings of Python 2 are read as UTF-8, which every released file satisfies because they are ASCII.

    Raises:
        DataNotFound: No such file.
        UnsafePickle: The pickle names a global (nothing was executed), or stands for far more than it holds.
        BadAnnotation: Not a pickle, or one that ends early.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as exc:
        raise DataNotFound(f"no file {path}") from exc
    except OSError as exc:
        raise DataNotFound(f"{path} cannot be read: {exc}") from exc
    try:
        unpickler = _DataUnpickler(io.BytesIO(raw), encoding="utf-8", errors="replace")
        unpickler.source = path
        content = unpickler.load()
        if not _is_bounded(content, _TIMES * len(raw)):
            raise UnsafePickle(f"{path} refers to itself, or stands for far more than it holds; {_OFFICIAL}")
        return content
    except UnsafePickle:
        raise
    except Exception as exc:  # a damaged pickle fails in many ways, depending on the opcode at which it is damaged
        raise BadAnnotation(
            f"{path} is truncated or not a pickle: it is {kind_of(path)} ({type(exc).__name__}: {exc}); fetch it again"
        ) from exc


def _is_bounded(content: Any, most: int) -> bool:
    """Tell whether entries and characters, each as often as it is referred to, are at most so many and not deep."""
    level, found = [content], 0
    for _ in range(_DEEPEST):
        level = [one for one in level if isinstance(one, list | tuple | dict | set | frozenset)]
        found += sum(map(len, level))
        if not level or found > most:
            break
        level = [inner for one in level for inner in _entries(one)]
        found += sum(len(inner) for inner in level if isinstance(inner, str | bytes))
    return not level and found <= most


def _entries(container: Any) -> Iterator[Any]:
    return iter(container.values() if isinstance(container, dict) else container)
