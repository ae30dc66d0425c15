"""Two image files registered by one command, and what was found applied to other files; no cohort is needed."""
