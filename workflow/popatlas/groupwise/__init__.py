"""Unbiased groupwise template building."""
