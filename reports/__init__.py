"""Results: figures, galleries and tables made from result files. Knows no torch and no harness."""

if not __name__.startswith("flmm_plugin."):
    raise ImportError(f"{__name__!r} is a folder of the checkout; import flmm_plugin.reports after `pip install -e .`")
