"""Height above ground and vector flow from one oblique overhead image: everything that exists without a cluster."""
