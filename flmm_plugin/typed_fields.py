"""Build dataclasses out of plain data, such as YAML: every key must be known and every value of its field's type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.suggestions import did_you_mean

_Built = TypeVar("_Built")


def built(cls: type[_Built], content: Any, source: str, where: str) -> _Built:
    """Build a dataclass out of plain data.

    Args:
        cls: Dataclass whose annotations say what each key may hold; nested dataclasses are built too.
        content: Mapping from the names of its fields to plain data.
        source: Name of the file or command line in messages.
        where: Dotted place of ``content`` in the source; "" at its top.

    Raises:
        UnknownArgument: A key is not known, a value has another type, or a field without a default is missing.
    """
    if not isinstance(content, Mapping):
        raise UnknownArgument(f"{source}: {where or 'the recipe'} is {content!r}; it must hold keys")
    hints = get_type_hints(cls)
    for key in content:
        if key not in hints:
            at = f"{where}.{key}" if where else str(key)
            raise UnknownArgument(f"{source}: unknown key {at!r}; {nearest(str(key), hints)}")
    values = {
        key: _value(hints[key], value, source, f"{where}.{key}" if where else key) for key, value in content.items()
    }
    try:
        return cls(**values)
    except TypeError as exc:
        raise UnknownArgument(f"{source}: {where or 'the recipe'} is incomplete: {exc}") from exc


def _value(hint: Any, value: Any, source: str, where: str) -> Any:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return built(hint, value, source, where)
    if origin in (types.UnionType, typing.Union):
        return _of_union(get_args(hint), value, source, where)
    if origin is Literal:
        if value in get_args(hint):
            return value
    elif origin is tuple:
        arguments = get_args(hint)
        if isinstance(value, list | tuple):
            inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
            if len(inner) == len(value):
                return tuple(
                    _value(one, item, source, f"{where}.{place}")
                    for place, (one, item) in enumerate(zip(inner, value, strict=True))
                )
    elif origin is dict:
        if isinstance(value, dict):
            return dict(value)
    elif hint is float:
        # YAML 1.1 takes 1e-4, without a point, for a word.
        number = _number(value)
        if number is not None:
            return number
    elif hint is type(None):
        if value is None:
            return None
    elif type(value) is hint:
        return value
    raise UnknownArgument(f"{source}: {where} is {value!r}; it must be {_said(hint)}")


def _of_union(options: Iterable[Any], value: Any, source: str, where: str) -> Any:
    said = []
    for one in options:
        try:
            return _value(one, value, source, where)
        except UnknownArgument:
            said.append(_said(one))
    raise UnknownArgument(f"{source}: {where} is {value!r}; it must be {' or '.join(said)}")


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def _said(hint: Any) -> str:
    """Return a type in words."""
    origin = get_origin(hint)
    if hint is type(None):
        return "null"
    if origin is Literal:
        return " | ".join(map(str, get_args(hint)))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_said(one) for one in get_args(hint))
    if origin is tuple:
        return "a list"
    if origin is dict:
        return "keys and values"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(hint, str(hint))


def change(content: Any, keys: Sequence[str], value: Any, override: str) -> None:
    """Set one value in nested plain data; make sections that are missing, whose names `built` checks later."""
    for place, key in enumerate(keys[:-1]):
        if isinstance(content, list):
            content = content[_place(content, key, override)]
        else:
            if not isinstance(content.get(key), dict | list):
                # A list that the file leaves out has its default's entries, which a number would have to count in.
                if place + 1 < len(keys) and keys[place + 1].isdigit():
                    raise UnknownArgument(f"{override!r}: the recipe has no list {key!r}; give the list in the file")
                content[key] = {}
            content = content[key]
    if isinstance(content, list):
        content[_place(content, keys[-1], override)] = value
    else:
        content[keys[-1]] = value


def _place(content: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(content):
        raise UnknownArgument(f"{override!r}: {key!r} is no place in a list of {len(content)}; they count from 0")
    return int(key)


def choice(where: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is none of those known, with the nearest of them."""
    if value not in known:
        raise UnknownArgument(f"{where} is {value!r}; {nearest(value, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return half a sentence for an error: the known name that was probably meant, and all of them."""
    options = [one for one in known if one]
    hint = did_you_mean(name, options).removeprefix("; ")
    return f"{hint} known: {', '.join(options)}".lstrip()


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested plain data in which ``over`` replaces values of ``base``; lists are replaced whole.

    >>> merged({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}})
    {'a': {'b': 1, 'c': [3]}}
    """
    found = dict(base)
    for key, value in over.items():
        known = found.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            found[key] = merged(known, value)
        else:
            found[key] = value
    return found


def plain(value: Any) -> Any:
    """Return mappings and sequences as dicts and lists, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value
