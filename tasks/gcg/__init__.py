"""Grounded conversation generation on GranD-f: a caption, and masks of what it names."""
