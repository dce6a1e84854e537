"""A recorded run: how it is made, kept, summarized and drawn."""
