"""Say how long work takes: as measured on such a device, else scaled from the nearest, else by arithmetic."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flmm_plugin.cli.plan_memory import ANSWER_TOKENS, TEXT_TOKENS, HeadsSize, ModelSize, short
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.measured import Measurement
from flmm_plugin.suggestions import did_you_mean

#: Share of a device's peak that a forward pass reaches, and share of its memory's speed that writing an answer does.
_SHARE, _SHARE_OF_BANDWIDTH = 0.4, 0.5
#: float32 against bfloat16 on a GPU's matrix units.
_FLOAT32 = 1 / 8
_CPU_CORE, _CPU_BANDWIDTH = 30e9, 20e9  # of a core and of the memory, assumed


@dataclass(frozen=True)
class Device:
    """A device and its published speed.

    Attributes:
        name: Name that its driver gives holds this word.
        memory: Number of bytes of its memory.
        flops: Dense operations per second in bfloat16 (float16 where it has no bfloat16).
        bandwidth: Bytes per second of its memory.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float


#: From the makers' data sheets; the first whose name stands in the driver's counts.
GPUS = (
    Device("H200", 141 * 10**9, 989e12, 4.8e12),
    Device("H100 PCIe", 80 * 10**9, 756e12, 2.0e12),
    Device("H100", 80 * 10**9, 989e12, 3.35e12),
    Device("A100", 80 * 10**9, 312e12, 2.0e12),
    Device("L40S", 48 * 10**9, 362e12, 864e9),
    Device("L4", 24 * 10**9, 121e12, 300e9),
    Device("A10", 24 * 10**9, 125e12, 600e9),
    Device("RTX A6000", 48 * 10**9, 155e12, 768e9),
    Device("RTX 4090", 24 * 10**9, 165e12, 1008e9),
    Device("RTX 3090", 24 * 10**9, 71e12, 936e9),
    Device("V100", 32 * 10**9, 125e12, 900e9),
    Device("T4", 16 * 10**9, 65e12, 320e9),
)


@dataclass(frozen=True)
class Stage:
    """Time of one stage of the work.

    Attributes:
        name: Task, or part of a training.
        documents: How many documents it has, None where nobody states it.
        each: Seconds of one document; None where nothing is known of the model.
        source: Words that say where that comes from.
        measured: Whether it was measured with this model on such a device.
        parts: Seconds of one document by part (``reads``, ``writes``, ``SAM``), where they come from arithmetic alone.
    """

    name: str
    documents: int | None
    each: float | None
    source: str
    measured: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Seconds of all documents, None where something is not known."""
        return None if self.documents is None or self.each is None else self.documents * self.each


def device_of(asked: str | None) -> tuple[str, Device | None]:
    """Return the name of a device as measurements have it, and its published speed; None for a CPU or an unknown GPU.

    Args:
        asked: ``cpu``, ``cuda``, ``cuda:1`` of this machine, or the name of a GPU in `GPUS`; None: the default here.

    Raises:
        UnknownArgument: Neither a device of this machine nor a known GPU.
    """
    known = {gpu.name.lower(): gpu for gpu in GPUS}
    if asked is not None and asked.lower() in known:
        gpu = known[asked.lower()]
        return f"cuda ({gpu.name})", gpu
    from flmm_plugin.backbones.loading import default_device
    from flmm_plugin.devices import checked_device, device_name

    try:
        name = str(device_name(checked_device(asked) or default_device()))
    except UnknownArgument as exc:
        hint = did_you_mean(str(asked), [gpu.name for gpu in GPUS]) or ""
        listed = ", ".join(gpu.name for gpu in GPUS)
        raise UnknownArgument(f"{exc}{hint and f'; {hint}'}; or plan for another machine's: {listed}") from exc
    return name, _published(name)


def _published(name: str) -> Device | None:
    return next((gpu for gpu in GPUS if gpu.name in name), None) if name.startswith("cuda") else None


def stage(
    name: str,
    documents: int | None,
    *,
    model: str,
    device: str,
    size: ModelSize | None,
    heads: HeadsSize | None,
    batch: int,
    known: Sequence[Measurement],
    writes: int = ANSWER_TOKENS,
    grows: bool = True,
) -> Stage:
    """Say how long a stage takes.

    Args:
        name: Task, or part of a training.
        documents: How many documents it has, None where nobody states it.
        model: Folder or hub id of the LMM.
        device: Name of the device, as measurements have it.
        size: Numbers of the LMM, None where they are not known.
        heads: Numbers of the heads; None if the stage grounds nothing.
        batch: Number of documents per forward pass, > 0.
        known: Measurements in the cache folder of this machine.
        writes: Tokens of an answer; 0 where none is written.
        grows: Whether it takes longer with a larger LMM.
    """
    same = [one for one in known if one.stage == name and one.model == model and _same_device(one.device, device)]
    if same:
        dtype = None if size is None else size.dtype
        one = max(same, key=lambda one: (one.dtype == dtype, one.batch_size == batch, one.documents))
        return Stage(name, documents, one.per_document, _said(one), measured=True)
    parts, arithmetic = _operations(size, heads, device, batch, writes)
    if size is not None:
        # A CPU says nothing about a GPU: there, arithmetic is nearer to the truth.
        alike = [one for one in known if one.device.startswith("cuda") == device.startswith("cuda")]
        scaled = [one for one in alike if one.stage == name and one.parameters and _speed(one.device) is not None]
        own = _speed(device)
        if scaled and own is not None:
            one = min(scaled, key=lambda one: (one.model != model, abs((one.parameters or 0) - size.parameters)))
            factor = (_speed(one.device) or own) / own * (size.parameters / (one.parameters or 1) if grows else 1)
            each = one.per_document * factor
            return Stage(name, documents, each, f"estimate: {factor:.2g} x that of {one.model}, {_said(one)}")
    return Stage(name, documents, sum(parts.values()) if parts else None, f"estimate: {arithmetic}", parts=parts)


def _same_device(left: str, right: str) -> bool:
    ours, theirs = _published(left), _published(right)
    return left == right or (ours is not None and ours is theirs)


def _said(one: Measurement) -> str:
    return (
        f"measured: {one.documents} documents in {one.dtype}, batch size {one.batch_size}, on {one.device}, "
        f"transformers {one.versions.get('transformers', '?')}"
    )


def _speed(device: str) -> float | None:
    """Return operations per second that a device reaches, assumed; None of a GPU that is not in the table."""
    published = _published(device)
    if published is not None:
        return _SHARE * published.flops
    return None if device.startswith("cuda") else _CPU_CORE * (os.cpu_count() or 1)


def _operations(
    size: ModelSize | None, heads: HeadsSize | None, device: str, batch: int, writes: int
) -> tuple[dict[str, float], str]:
    """Return seconds of one document by part, none where nothing is known, and the arithmetic."""
    speed, published = _speed(device), _published(device)
    if size is None:
        return {}, "nothing is known of the size of this model"
    if speed is None:
        return {}, f"nothing is known of the speed of {device}; name a known GPU with --device"
    full = published is None or size.dtype != "float32"
    tokens = size.image_tokens + TEXT_TOKENS
    rate = speed if full else speed * _FLOAT32
    seconds = {"reads": 2 * size.parameters * tokens / rate}
    said = f"2 x {short(size.parameters)} x {tokens:,} tokens at {rate / 1e12:.3g} TFLOP/s"
    if writes:
        bandwidth = _SHARE_OF_BANDWIDTH * (published.bandwidth if published is not None else _CPU_BANDWIDTH)
        seconds["writes"] = writes * max(size.weight_bytes / bandwidth / batch, 2 * size.parameters / rate)
        said += f" + {writes} tokens at {bandwidth / 1e9:,.0f} GB/s"
    if heads is not None and heads.sam_encoder:
        slow = speed if published is None else speed * _FLOAT32
        seconds["SAM"] = 2 * heads.sam_encoder * heads.sam_cells / slow
        said += f" + SAM 2 x {short(heads.sam_encoder)} x {heads.sam_cells:,} cells at {slow / 1e12:.3g} TFLOP/s"
    share = f"{100 * _SHARE:.0f} % of its peak" if published is not None else "30 GFLOP/s a core"
    return seconds, f"{said} ({share}, assumed)"


def duration(seconds: float | None) -> str:
    """Write seconds for people.

    >>> duration(12.3), duration(754), duration(9000), duration(None), duration(400000)
    ('12 s', '13 min', '2 h 30 min', '?', '111 h 7 min')
    """
    if seconds is None:
        return "?"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
