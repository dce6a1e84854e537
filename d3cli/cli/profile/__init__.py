"""``d3 profile``."""
