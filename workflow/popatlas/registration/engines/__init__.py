"""Registration engines, one module or package each, and the registry that finds them by name."""
