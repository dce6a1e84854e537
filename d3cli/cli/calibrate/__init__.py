"""``d3 calibrate``."""
