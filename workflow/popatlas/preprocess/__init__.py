"""Preprocessing: bias, conform, brain, intensity."""

# Revisions of what once made wrong results in silence; raised when results come out otherwise. Receipts hold them, so
# that results of an older revision are made again.
FINDER = 2  # how deepbet is given the head
LEVELS = 1  # how the levels of an image are brought in order before N4
