"""Benchmarks: prompts, official splits and scoring, one folder per benchmark."""

if not __name__.startswith("flmm_plugin."):
    raise ImportError(
        f"{__name__!r} is the folder of flmm_plugin.tasks in a checkout: import flmm_plugin.tasks after `pip install -e .`"
    )
