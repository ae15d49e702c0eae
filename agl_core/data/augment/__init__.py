"""Augmentation: what is done to a crop, and what that does to its labels."""
