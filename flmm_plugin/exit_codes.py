"""End a command with status 0 only if it did what it was asked, and else with one line that says why not."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from flmm_plugin.errors import FlmmError
from flmm_plugin.needs import NotReady

#: Exit status of a command that could not do what it was asked, for a reason that its last line names.
FAILED = 2
#: As shells count: 128 and the number of the signal.
INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): told like Ctrl-C, so that whoever tidies up after that does so."""


def status_of(run: Callable[[], int], *, name: str = "flmm", stopped: Callable[[], str] = lambda: "") -> int:
    """Run a command to its end, whatever that is.

    Args:
        run: The command; returns its exit status.
        name: What its last line begins with.
        stopped: What is saved when somebody stops it, and how to go on; a few words, asked for only then.

    Returns:
        The exit status: of `run`; `FAILED` for what has a name; `INTERRUPTED`, `TERMINATED` or `BROKEN_PIPE`. Any
        other exception is a bug and goes through.
    """
    try:
        with terminable():
            status = run()
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as exc:
        ended = isinstance(exc, Terminated)
        words = ""
        with contextlib.suppress(Exception):
            words = stopped()
        say(name, ("terminated" if ended else "stopped by Ctrl-C") + (f"; {words}" if words else ""))
        return TERMINATED if ended else INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except (FlmmError, OSError, UnicodeDecodeError, RecursionError, MemoryError) as exc:
        said = named(exc)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            say(name, said)
            return FAILED
        _drop_output()
        say(name, said)
        return FAILED


def named(error: BaseException) -> str:
    """Name an error in one line; the list of what is missing keeps its lines, as do notes on the error.

    >>> named(FileNotFoundError(2, "No such file or directory", "a.json"))
    'FileNotFoundError: a.json: No such file or directory'
    """
    kind, words = type(error).__name__, str(error)
    if isinstance(error, NotReady):
        return f"{kind}: {words}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        words = f"{error.filename}: {error.strerror}"
    elif isinstance(error, UnicodeDecodeError):
        words = f"a file that was read is not {error.encoding} text (byte {error.start}); save it as UTF-8"
    elif isinstance(error, RecursionError):
        words = f"what was read is nested too deeply ({words})"
    elif isinstance(error, MemoryError):
        words = f"there is not enough memory {words}"
    return "\n".join([f"{kind}: {' '.join(words.split())}", *getattr(error, "__notes__", ())])


def say(name: str, words: str) -> None:
    """Print a command's line on standard error; a closed one is nobody's failure."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{name}: {words}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM while the block runs, where a handler may be set.

    One of several ranks is left as it is: it may be waiting for a lost one in C++, where no handler runs, and its
    launcher wants it gone.
    """

    def end(_signal: int, _frame: object) -> None:
        raise Terminated

    alone = int(os.environ.get("WORLD_SIZE") or 1) <= 1
    if not alone or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _drop_output() -> None:
    """Let what cannot be written any more go nowhere, so that the interpreter's own last flush does not fail."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
