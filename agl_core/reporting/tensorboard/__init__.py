"""The same numbers and pictures for TensorBoard."""
