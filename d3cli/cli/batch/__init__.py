"""d3 generate --input."""
