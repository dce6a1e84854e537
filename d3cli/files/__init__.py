"""From a model's name to files that were found safe to read."""
