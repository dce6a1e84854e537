"""A trace as one HTML file."""
