"""A Hugging Face model with the gate and the ragged KV cache."""
