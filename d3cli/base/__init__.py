"""What every package may use: errors, settings, files, the machine. Knows nothing of models."""
