"""From files to batches: tiles, catalogue, store, sample order, the built-in world."""
