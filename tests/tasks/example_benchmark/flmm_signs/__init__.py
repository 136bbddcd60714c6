"""Street signs as a benchmark of flmm-plugin."""
