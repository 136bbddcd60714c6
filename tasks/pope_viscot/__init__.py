"""POPE, answered after a second look."""
