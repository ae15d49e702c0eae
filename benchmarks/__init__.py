"""Measured comparisons: each script runs what it compares interleaved and reports ratios with their spread."""
