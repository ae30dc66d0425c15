"""Search for a rigid transform over all rotations and shifts at once."""
