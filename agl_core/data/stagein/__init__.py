"""A copy of the store on the node's own disk or in its memory."""
