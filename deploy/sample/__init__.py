"""The sample dataset: see README.md."""
