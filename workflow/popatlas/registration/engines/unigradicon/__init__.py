"""uniGradICON as engine."""
