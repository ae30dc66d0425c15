"""Population types: whether the subjects of a cohort fall into groups, or one template serves them all."""
