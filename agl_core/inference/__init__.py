"""From a model and images to predictions on disk."""
