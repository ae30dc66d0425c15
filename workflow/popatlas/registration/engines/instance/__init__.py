"""The diffeomorphic instance engine: compositive updates by the force of a similarity, from coarse to fine."""
