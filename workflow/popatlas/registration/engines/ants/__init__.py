"""ANTs as engine."""
