"""Label fusion on real images: `python -m benchmarks.fusion --help`."""
