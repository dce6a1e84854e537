"""What drafts the next tokens of a lossless reply, and how many."""
