"""Benchmarks' data: what is needed and from where, whether it is all there, how to get it, made quick to open."""

#: Folder under a data root for what this package puts there itself: downloads and prepared files.
WORKPLACE = ".flmm"
