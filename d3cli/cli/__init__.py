"""The command line: one file or package per command. Nothing in d3cli imports this package."""
