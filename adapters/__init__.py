"""Harnesses: how an evaluation harness drives the method. Each knows the public API and one harness."""

if not __name__.startswith("flmm_plugin."):
    raise ImportError(f"{__name__!r} is a folder of the checkout; import flmm_plugin.adapters after `pip install -e .`")
