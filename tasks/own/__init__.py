"""Data of one's own: a COCO file with a phrase per annotation."""
