"""Keyword selection: which words of a narrative name something in the picture."""
