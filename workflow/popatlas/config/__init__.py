"""The configuration: its sections, how it is read and checked, and what follows from several of its keys."""
