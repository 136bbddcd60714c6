"""Readers of data sets in the layouts that their makers released."""
