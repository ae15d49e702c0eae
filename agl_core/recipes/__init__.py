"""Recipes: YAML files on top of `agl_core.config.TrainConfig`, each value with its source."""
