"""Benchmarks: prompts, official splits and scoring, one folder per benchmark."""

if not __name__.startswith("flmm_plugin."):
    raise ImportError(f"{__name__!r} is a folder of the checkout; import flmm_plugin.tasks after `pip install -e .`")
