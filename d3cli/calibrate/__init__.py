"""The search for the fastest schedule within a quality target."""
