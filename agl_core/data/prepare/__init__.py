"""From a data set's files to the store."""
