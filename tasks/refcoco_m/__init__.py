"""RefCOCO-M: RefCOCO's validation expressions with masks that were drawn anew."""
