"""What every package may lean on: errors, settings, the machine. Knows nothing of models."""
