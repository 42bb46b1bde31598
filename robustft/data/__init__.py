"""Data: training images with a hold-out, the in-distribution evaluation set and the shift sets."""
