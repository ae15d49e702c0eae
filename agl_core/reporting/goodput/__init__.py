"""Where the time of a run went: every moment in one item."""
