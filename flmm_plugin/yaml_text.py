"""Read YAML that somebody wrote as plain data; what is wrong with it is named with its place."""

from __future__ import annotations

from typing import Any

import yaml

from flmm_plugin.errors import UnknownArgument

_MOST_VALUES = 100_000  # in one text; references let a short one speak of more than memory holds
_DEEPEST = 50


def read_yaml(text: str, source: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Parse YAML.

    Args:
        text: One YAML document of at most 100,000 values, nested at most 50 deep.
        source: Name of the text in messages.
        loader: Class that makes plain data; another one than the default knows further tags.

    Raises:
        UnknownArgument: It is no YAML, nested too deeply, holds itself, or speaks of too much.
    """
    try:
        reading = loader(text)  # refuses characters that YAML has not
    except yaml.YAMLError as exc:
        raise UnknownArgument(f"{source} is not YAML: {' '.join(str(exc).split())}") from exc
    try:
        node = reading.get_single_node()
        if node is None:
            return None
        _check(node, source)
        return reading.construct_document(node)
    except RecursionError as exc:
        raise UnknownArgument(f"{source}, {_place(reading.get_mark())}: nested too deeply to be read") from exc
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as exc:
        raise UnknownArgument(f"{source} is not YAML: {' '.join(str(exc).split())}") from exc
    finally:
        reading.dispose()


def _check(root: yaml.Node, source: str) -> None:
    """Walk over all values, as whoever uses them will: what is referred to counts at each reference."""
    waiting: list[tuple[yaml.Node, int]] = [(root, 0)]
    count = 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST:
            raise UnknownArgument(
                f"{source}, {_place(node.start_mark)}: nested too deeply, or a value that holds itself (&name, *name)"
            )
        if count > _MOST_VALUES:
            raise UnknownArgument(f"{source} speaks of more than {_MOST_VALUES:,} values; are its *references meant?")
        if isinstance(node, yaml.MappingNode):
            waiting += [(one, depth + 1) for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(one, depth + 1) for one in node.value]


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"
