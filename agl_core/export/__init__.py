"""Files for other programs: point clouds, heights of footprints, weights with their card, portable networks."""
