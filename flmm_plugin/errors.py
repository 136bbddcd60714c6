"""The errors of the plugin: one base class, one subclass per kind of trouble, every message names the fix."""

from __future__ import annotations


class FlmmError(Exception):
    """Base of all errors that this package raises on purpose. ``except FlmmError`` catches nothing else."""


class BadImage(FlmmError):
    """A file or object that should be a picture cannot be decoded as one."""


class BadText(FlmmError):
    """A text that a model cannot read: no string, half of a character in it, or longer than the model's context."""


class EmptyPhrase(BadText):
    """A phrase to ground has no words, or no token of its own."""


class UnknownArgument(FlmmError):
    """An argument, model or task name that does not exist; the message offers the nearest known one."""


class BackboneUnsupported(FlmmError):
    """A model family (or an option of one) that no backbone of this package speaks."""


class CaptureError(FlmmError):
    """The word-image attention of some layer or row was not delivered."""


class FrozenWeightsChanged(FlmmError):
    """A weight of the frozen backbone is not what it was when it was sealed."""


class HeadsMismatch(FlmmError):
    """Heads that were trained for a backbone of another shape."""


class BadCheckpoint(FlmmError):
    """A checkpoint file that is truncated, altered, of a newer format, or has missing or unknown tensors."""


class UnsafePickle(FlmmError):
    """A pickle that wants to import something or to claim more memory than it holds; nothing of it was executed."""


class DataNotFound(FlmmError):
    """A file of a data set is not where it should be."""


class BadAnnotation(FlmmError):
    """An annotation that contradicts itself or its picture."""


class ToolNotFound(FlmmError):
    """A program or model that a metric needs, not this package, is not on this machine."""


class OutputFailed(FlmmError):
    """A result cannot be written where it was asked for: a full or read-only disk, a place that is something else."""


class BadCache(FlmmError):
    """A cache of features whose files contradict what they say they are, or that has no room."""


class TrainingStopped(FlmmError):
    """A training run that cannot go on as it is; what it has made so far is on disk."""
