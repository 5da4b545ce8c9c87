"""Students: models, sources of targets, evaluation and training."""
