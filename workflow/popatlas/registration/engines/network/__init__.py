"""The network engine: predictions of a trained network, refined by the instance engine where asked."""
