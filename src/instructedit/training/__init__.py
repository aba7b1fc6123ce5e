"""Meta-training: recipes, data, objective, the training loop, and its checkpoints."""
