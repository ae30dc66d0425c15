"""Measurements on data: `python -m benchmarks.<name>`. They write Markdown, JSON and pictures, never assert."""
