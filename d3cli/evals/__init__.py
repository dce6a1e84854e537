"""Task scores: lm-evaluation-harness at a depth schedule, and right answers to own tasks."""
