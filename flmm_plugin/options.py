"""Options of loading a frozen model, each written down once: name, default, help text and check. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, get_origin, get_type_hints

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.suggestions import did_you_mean


@dataclass(frozen=True)
class WeightOptions:
    """Options that say which weights of a model are loaded, and in which form; `help_texts` describes each.

    Raises:
        UnknownArgument: Two options exclude each other, or a switch is neither true nor false.
    """

    revision: Annotated[str | None, "version of the model on the hub: branch, tag or commit"] = None
    dtype: Annotated[str, "float32, bfloat16, float16, or auto: as stored"] = "auto"
    attn_implementation: Annotated[str | None, "attention kernel: sdpa, eager, flash_attention_2, ..."] = None
    device_map: Annotated[str | dict[str, Any] | None, "how to split the model over devices, e.g. auto"] = None
    load_in_4bit: Annotated[bool, "true: quantise the weights to 4 bits while loading (bitsandbytes)"] = False
    load_in_8bit: Annotated[bool, "true: quantise the weights to 8 bits while loading (bitsandbytes)"] = False
    trust_remote_code: Annotated[
        bool, "true: run code from the model's repository, for families that cannot do without"
    ] = False

    def __post_init__(self) -> None:
        # A torch dtype is known by its name from here on.
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        for name in ("load_in_4bit", "load_in_8bit", "trust_remote_code"):
            object.__setattr__(self, name, as_switch(name, getattr(self, name)))
        if self.load_in_4bit and self.load_in_8bit:
            raise UnknownArgument("give either load_in_4bit or load_in_8bit, not both")

    @classmethod
    def help_texts(cls) -> dict[str, str]:
        """Return what each option means, by name."""
        hints = get_type_hints(cls, include_extras=True)
        return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}

    @property
    def bits(self) -> int | None:
        """Bits per weight where the weights are quantised, else None."""
        if self.load_in_4bit:
            return 4
        return 8 if self.load_in_8bit else None


@dataclass(frozen=True)
class LoadOptions(WeightOptions):
    """All that can be said about loading a model, beside its name.

    Raises:
        UnknownArgument: As `WeightOptions`.
    """

    device: Annotated[str | None, "cpu, cuda, cuda:1, ...; default: the first GPU, else the CPU"] = None
    system_prompt: Annotated[str | None, "a system turn before every chat that has none"] = None
    preprocessing: Annotated[
        str | None, "what pictures go through before grounding: stock (as in chat) or paper; default: the heads' own"
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device is not None:
            object.__setattr__(self, "device", str(self.device))
            if self.device_map is not None:
                raise UnknownArgument("give either device or device_map, not both")

    @classmethod
    def of(cls, caller: str, given: Mapping[str, Any], others: Iterable[str] = ()) -> Self:
        """Make options of keyword arguments.

        Args:
            caller: Function that was called, for the message.
            given: Values by name of the option.
            others: Further arguments of the caller, to be offered for a misspelt name.

        Raises:
            UnknownArgument: There is no such option.
        """
        known = cls.help_texts()
        refuse_unknown(caller, [name for name in given if name not in known], (*known, *others))
        return cls(**given)

    @classmethod
    def of_weights(cls, weights: WeightOptions, *, device: str | None) -> Self:
        """Make options of those that concern the weights alone."""
        return cls(**{name: getattr(weights, name) for name in WeightOptions.help_texts()}, device=device)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read options from one text.

        >>> LoadOptions.parse("dtype=bfloat16,load_in_4bit=true").bits
        4

        Args:
            text: Options as ``name=value,name=value``, e.g. from a command line.

        Raises:
            UnknownArgument: A part without ``=``, or an option that does not exist.
        """
        return cls.of("loading a model", arguments_of(text))


def refuse_unknown(caller: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that do not exist.

    Args:
        caller: Function, model or file that was given the names, for the message.
        names: Names that the caller was given.
        known: Names that exist; of a mapping, the message also shows what each means.

    Raises:
        UnknownArgument: For the first unknown name, with the nearest known one, or all where none is near.
    """
    meanings = known if isinstance(known, Mapping) else dict.fromkeys(known, "")
    for name in names:
        if name not in meanings:
            listed = ", ".join(f"{one} ({meaning})" if meaning else one for one, meaning in meanings.items())
            hint = did_you_mean(name, meanings) or f"; known: {listed}"
            raise UnknownArgument(f"{caller} has no argument {name!r}{hint}")


def as_switch(name: str, value: Any) -> bool:
    """Read true or false, also as a command line says it.

    Raises:
        UnknownArgument: It is neither.
    """
    said = str(value).strip().lower()
    if said in ("true", "1", "yes"):
        return True
    if said in ("false", "0", "no", "none", ""):
        return False
    raise UnknownArgument(f"{name} is {value!r}; give true or false")


def none_if_said(value: Any) -> Any:
    """Return None for the words ``none`` and ``null``, which is how a command line says it; others as they are."""
    return None if isinstance(value, str) and value.strip().lower() in ("none", "null", "") else value


def arguments_of(text: str) -> dict[str, Any]:
    """Read ``name=value,...`` as lmms-eval does: true, false and numbers are those, everything else is text.

    >>> arguments_of("pretrained=a/b,limit=3,fast=True")
    {'pretrained': 'a/b', 'limit': 3, 'fast': True}

    Raises:
        UnknownArgument: A part without ``=``.
    """
    parsed: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise UnknownArgument(f"{part!r} is no argument: write name=value,name=value")
        parsed[name.strip()] = _value(value.strip())
    return parsed


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
