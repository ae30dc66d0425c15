"""Free-form deformation by control points as engine."""
