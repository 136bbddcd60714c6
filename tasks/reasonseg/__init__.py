"""Reasoning segmentation: an implicit query, an answer, and the mask of what is meant."""
