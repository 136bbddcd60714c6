"""Measure what grounding costs beside the plain model and the paper's way; ``flmm bench`` prints it."""
