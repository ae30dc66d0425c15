"""Label propagation and fusion."""
