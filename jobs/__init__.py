"""What is submitted: the command line, clusters, stages, pipelines and the run directory."""
