"""What a schedule costs: one-pass scores, comparisons with full depth, step times."""
