"""Time pieces of work so that a shared machine can still compare them.

On a CPU the clock counts the seconds of the calling thread, with torch on one thread: what other processes do adds
little to it. On a GPU it reads CUDA events. Arms are interleaved in rotating order in one process, and every ratio
stands beside that of a null arm, the same work under a second name. A ratio that lies within the null arm's spread says
nothing, and is shown as *not resolved*.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flmm_plugin.attention import AttentionCapture, attention_name

#: Name of the null arm: the first arm once more.
NULL = "null"


class Clock:
    """Seconds of this thread on a CPU, of the device's stream on a GPU.

    Args:
        device: Device that the work runs on.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def now(self) -> Any:
        """Return a mark for `between`."""
        if not self.on_gpu:
            return time.thread_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Return the seconds from one mark to another; on a GPU only after `settle`."""
        return float(begin.elapsed_time(end)) / 1000 if self.on_gpu else float(end - begin)

    def settle(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def time(self, work: Callable[[], Any]) -> float:
        """Run the work and return its seconds."""
        self.settle()
        begin = self.now()
        work()
        end = self.now()
        self.settle()
        return self.between(begin, end)


@dataclass(frozen=True)
class Ratio:
    """Ratio of the seconds of two arms.

    Attributes:
        minima: Fastest run of the one over the fastest of the other.
        median: Median of the ratios within a round.
        low: 10th percentile of these ratios.
        high: 90th percentile of these ratios.
    """

    minima: float
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, these: Sequence[float], those: Sequence[float]) -> Ratio:
        """Compare the seconds of two arms, round by round."""
        ratios = sorted(a / b for a, b in zip(these, those, strict=True))
        edges = statistics.quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else ratios
        return cls(min(these) / min(those), statistics.median(ratios), edges[0], edges[-1])

    def resolved(self, null: Ratio) -> bool:
        """Tell whether this differs from 1 by more than the null arm's ratios scatter.

        >>> Ratio(1.1, 1.1, 1.08, 1.12).resolved(Ratio(1, 1, 0.97, 1.03))
        True
        >>> Ratio(1.02, 1.02, 1.0, 1.04).resolved(Ratio(1, 1, 0.97, 1.03))
        False
        """
        return not null.low <= self.median <= null.high


class Times:
    """Seconds of every arm in every round.

    Args:
        seconds: By arm, one number per round; the null arm is named `NULL` and repeats the first arm.
    """

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self.seconds = seconds

    def ratio(self, arm: str, over: str) -> Ratio:
        """Return how much longer an arm takes than another."""
        return Ratio.of(self.seconds[arm], self.seconds[over])

    @property
    def null(self) -> Ratio:
        """Ratio of the null arm to what it repeats."""
        return self.ratio(NULL, next(iter(self.seconds)))


def interleaved(arms: Mapping[str, Callable[[], Any]], rounds: int, clock: Clock, title: str = "") -> Times:
    """Run the arms one after another in rotating order, after one run of each to warm up.

    Args:
        arms: Work by name. The first is run a second time under the name `NULL`.
        rounds: Number of rounds, at least 1.
        clock: Clock of the device that works.
        title: What the progress bar says; "" for no bar.
    """
    every = {**arms, NULL: next(iter(arms.values()))}
    for work in arms.values():
        work()
    names = list(every)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm(range(rounds), desc=title, disable=not title):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(clock.time(every[name]))
    return Times(seconds)


@dataclass
class Meter:
    """Sum of the seconds of marked stretches of work."""

    clock: Clock
    _stretches: list[tuple[Any, Any]] = field(default_factory=list)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self.clock.now()
            try:
                return function(*args, **kwargs)
            finally:
                self._stretches.append((begin, self.clock.now()))

        return timed

    @property
    def seconds(self) -> float:
        """Seconds of all stretches so far."""
        self.clock.settle()
        return sum(self.clock.between(begin, end) for begin, end in self._stretches)


@contextmanager
def watched_captures(decoder: nn.Module, clock: Clock) -> Iterator[Callable[[], float]]:
    """Time what captures of a decoder add to its forward pass: the wrapper around its attention, and all hooks.

    Yields a function that returns the *self time* so far: the wrapper without the stock attention inside it, the hooks,
    and what it takes to begin and to end a capture.
    """
    name, began = attention_name(decoder), AttentionCapture.active
    stock = ALL_ATTENTION_FUNCTIONS[name]
    inside, around = Meter(clock), Meter(clock)

    @contextmanager
    def active(capture: AttentionCapture) -> Iterator[AttentionCapture]:
        context = began(capture)
        before = {id(hook) for hooks in _hooks(decoder) for hook in hooks.values()}
        yielded = around.around(context.__enter__)()
        wrapper = ALL_ATTENTION_FUNCTIONS[name]
        for hooks in _hooks(decoder):
            for key, hook in hooks.items():
                if id(hook) not in before:
                    hooks[key] = around.around(hook)
        ALL_ATTENTION_FUNCTIONS[name] = around.around(wrapper)
        try:
            yield yielded
        finally:
            ALL_ATTENTION_FUNCTIONS[name] = wrapper
        around.around(context.__exit__)(None, None, None)

    own = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
    ALL_ATTENTION_FUNCTIONS[name] = inside.around(stock)
    AttentionCapture.active = active  # type: ignore[method-assign,assignment]
    try:
        yield lambda: around.seconds - inside.seconds
    finally:
        AttentionCapture.active = began  # type: ignore[method-assign]
        if own is None:
            del ALL_ATTENTION_FUNCTIONS[name]
        else:
            ALL_ATTENTION_FUNCTIONS[name] = own


def _hooks(decoder: nn.Module) -> Iterator[dict[int, Any]]:
    for module in decoder.modules():
        yield module._forward_pre_hooks
        yield module._forward_hooks


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Return by how many bytes the memory grows at most while the work runs.

    On a GPU, what torch allocates; on a CPU, what the whole process has in memory (Linux).
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed long ago must not hide what is taken now
    with open("/proc/self/clear_refs", "w", encoding="ascii") as reset:
        reset.write("5")  # the peak becomes what there is now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith(name))
    return int(line.split()[1]) * 1024


def process_seconds(command: Sequence[str], **options: Any) -> float:
    """Run a command and return the CPU seconds of it and its children.

    Raises:
        CalledProcessError: It failed.
    """
    before = _children()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
