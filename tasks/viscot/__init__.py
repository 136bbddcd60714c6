"""The Visual-CoT benchmark: answers and the regions that hold them."""
