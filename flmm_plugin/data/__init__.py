"""Benchmarks' data: what is needed and from where, whether it is all there, how to get it, made quick to open."""
