"""The steps of the container files, in a clean root."""
