"""How popatlas copes with large cohorts: time and memory of each command, and a simulated run."""
