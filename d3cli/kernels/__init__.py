"""How one product or one attention is computed fast; knows nothing of depth."""
