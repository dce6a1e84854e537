"""``d3 doctor``."""
