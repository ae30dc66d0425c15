"""Registration engines and the quality gate."""
