"""The command line: one file a command. Nothing in d3cli imports this package."""
