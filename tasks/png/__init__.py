"""Panoptic narrative grounding: masks for the phrases of a narrative."""
