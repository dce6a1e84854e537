"""``d3 serve``."""
