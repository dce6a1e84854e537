"""Task scores: lm-evaluation-harness at a depth schedule."""
