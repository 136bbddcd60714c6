"""Keep annotations as Arrow files, so that a run starts in seconds however large the official files are.

`flmm data prepare` writes ``<root>/.flmm/prepared/<key>.arrow``: one row per item, one column per field, nested fields
as JSON text, paths relative to the root; behind it stands the SHA-256 of all that. The file names the content of its
sources and the code of the readers; a reader that finds one of them changed, or one bit of the file flipped, reads the
official files as ever. So a prepared file can be stale but never wrong.

Records are frozen dataclasses of numbers, texts, paths, tuples, mappings and other such records; the types that they
declare say how they are read back.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from flmm_plugin import files
from flmm_plugin.content_hashes import file_digest
from flmm_plugin.errors import BadAnnotation

T = TypeVar("T")

_FORMAT = 3
_DIGEST_BYTES = 32
_PLAIN = (str, int, float, bool)
#: Fields of these types are columns of that type; every other one is a column of JSON texts.
_COLUMNS = (*_PLAIN, Path)
_WRITING: ContextVar[list[Path] | None] = ContextVar("flmm_prepared_writing", default=None)


class Prepared(NamedTuple):
    """Items of a reader, and anything else that JSON holds."""

    items: tuple[Any, ...]
    extra: Any


@contextmanager
def writing() -> Iterator[list[Path]]:
    """Let readers write what they read in this block; the list names the files."""
    written: list[Path] = []
    token = _WRITING.set(written)
    try:
        yield written
    finally:
        _WRITING.reset(token)


def items_of(
    root: Path,
    key: str,
    sources: Sequence[Path],
    record: type[T],
    build: Callable[[], tuple[Iterable[T], Any]],
    places: Sequence[Path] = (),
) -> Prepared:
    """Return a reader's items: from the prepared file if there is a fresh one, else from the official files.

    Args:
        root: Data root, which paths are relative to.
        key: Name of the prepared file; different for everything that changes the items.
        sources: The official files that the items are made of.
        record: Class of the items, a frozen dataclass.
        build: Reads the official files: items, and extra facts that JSON holds.
        places: Folders that items name files of, whatever is in them.
    """
    path = root / files.WORKPLACE / "prepared" / f"{key}.arrow"
    state = {_relative(source, root): _state(source) for source in sources}
    state.update({_relative(place, root): "place" for place in places})
    writing_to = _WRITING.get()
    if writing_to is None:
        found = _read(path, state, record, root)
        if found is not None:
            return found
    items, extra = build()
    made = Prepared(tuple(items), extra)
    if writing_to is not None:
        _write(path, state, record, root, made)
        writing_to.append(path)
    return made


def _state(source: Path) -> str:
    """Name the state of a source: of a file its content, as times can be set back; of a folder its time of change."""
    if source.is_dir():
        return f"folder of {source.stat().st_mtime_ns}"
    return file_digest(source)


@functools.cache
def _readers() -> str:
    """Hash the readers' code: another reader may make other items of the same files."""
    package = Path(__file__).parents[1]
    code = hashlib.sha256()
    for path in sorted([*(package / "datasets").rglob("*.py"), package / "records.py", package / "images.py"]):
        code.update(path.read_bytes())
    return code.hexdigest()


def _write(path: Path, state: Mapping[str, Any], record: type[Any], root: Path, made: Prepared) -> None:
    import pyarrow as pa

    rows = [_plain(item, root) for item in made.items]
    columns = {
        name: [row[name] if hint in _COLUMNS else _json(row[name]) for row in rows]
        for name, hint in typing.get_type_hints(record).items()
    }
    facts = {**_made_of(record, state), "extra": made.extra}
    table = pa.table(columns).replace_schema_metadata({b"flmm": json.dumps(facts).encode("utf-8")})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    files.write(path, content + hashlib.sha256(content).digest())


def _made_of(record: type[Any], state: Mapping[str, Any]) -> dict[str, Any]:
    # A reader of another package stands beside its record.
    code = inspect.getsourcefile(record)
    reader = None if code is None else file_digest(Path(code))
    return {
        "format": _FORMAT, "record": record.__qualname__, "reader": reader, "readers": _readers(), "sources": state,
    }  # fmt: skip


def _read(path: Path, state: Mapping[str, Any], record: type[Any], root: Path) -> Prepared | None:
    """Read a prepared file; None if there is none, or it is of other sources, another form or damaged."""
    if not path.is_file():
        return None
    import pyarrow as pa

    try:
        content = memoryview(path.read_bytes())
        table_bytes, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        # Before Arrow sees a byte: it reads a flipped bit as other data, or not at all and ends the process.
        if hashlib.sha256(table_bytes).digest() != digest:
            return None
        table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(table_bytes))).read_all()
        facts = json.loads(table.schema.metadata[b"flmm"])
        extra = facts.pop("extra")
        if facts != _made_of(record, state):
            return None
        columns = []
        for name, hint in typing.get_type_hints(record).items():
            cells = table.column(name).to_pylist()
            columns.append([_restored(cell if hint in _COLUMNS else json.loads(cell), hint, root) for cell in cells])
        items = tuple(record(*row) for row in zip(*columns, strict=True))
        return Prepared(items, extra)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any, root: Path) -> Any:
    """Return a value as JSON holds it; a record becomes an object."""
    if isinstance(value, Path):
        return _relative(value, root)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), root) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one, root) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, root) for one in value]
    if value is None or isinstance(value, _PLAIN):
        return value
    raise BadAnnotation(f"a {type(value).__name__} cannot be prepared; give numbers, texts, paths, tuples and mappings")


def _restored(value: Any, hint: Any, root: Path) -> Any:
    """Undo `_plain`, by the declared type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None or hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _restored(value, next(one for one in arguments if one is not type(None)), root)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_restored(one, arguments[0], root) for one in value)
        return tuple(_restored(one, part, root) for one, part in zip(value, arguments, strict=True))
    if hint is Path:
        return root / value  # an absolute path stays what it is
    if dataclasses.is_dataclass(hint):
        made: Any = hint
        return made(**{name: _restored(value[name], part, root) for name, part in typing.get_type_hints(hint).items()})
    return value


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
