"""Networks: features of images, labels from features, and their files."""
