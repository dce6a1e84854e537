"""The paper: prefill, decode steps, replies, conversations."""
