"""A study: the parts that the rules ask, its jobs, and what is made and left to do."""
