"""Tests of `d3 generate --input`."""
