"""Read a pickle as data: containers, strings and numbers, and nothing that could run.

The ``refs(...).p`` files of RefCOCO are pickles that Python 2 wrote. What they hold (lists, dicts, unicode strings,
ints) has opcodes of its own in every protocol: such a file never names a global. A pickle that does is asking to
import and call something, so no name at all is allowed here, not even a harmless one; without a callable, no other
opcode can run code.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from flmm_plugin.errors import BadAnnotation, DataNotFound, UnsafePickle


class _DataUnpickler(pickle.Unpickler):
    """An unpickler that refuses every global, and with it every call."""

    source: Path

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise UnsafePickle(
            f"{self.source} asks to import `{module_name}.{global_name}`; nothing of it was executed. Annotation "
            "pickles hold plain lists, dicts, strings and numbers: get the file from its official source, or, if you "
            "made it, save it again without objects (numpy numbers as int/float)"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise UnsafePickle(f"{self.source} refers to an outside object {pid!r}; nothing of it was executed")


def load_data_pickle(path: Path) -> Any:
    """Unpickle `path`, which may hold plain data only.

    Byte strings of Python 2 are read as UTF-8, which every released file satisfies because they are ASCII.

    Raises:
        DataNotFound: No such file.
        UnsafePickle: The pickle names a global; nothing was executed.
        BadAnnotation: Not a pickle, or one that ends early.
    """
    try:
        with path.open("rb") as file:
            unpickler = _DataUnpickler(file, encoding="utf-8", errors="replace")
            unpickler.source = path
            return unpickler.load()
    except FileNotFoundError as exc:
        raise DataNotFound(f"no file {path}") from exc
    except UnsafePickle:
        raise
    # A damaged pickle may fail in any of these ways, depending on the opcode at which it was cut.
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as exc:
        raise BadAnnotation(
            f"{path} is truncated or not a pickle ({type(exc).__name__}: {exc}); fetch it again"
        ) from exc
