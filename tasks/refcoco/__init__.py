"""RefCOCO, RefCOCO+ and RefCOCOg as mask tasks."""
