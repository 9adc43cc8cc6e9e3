"""What carries optimizers: hyperparameters, states on the tiers, updates under way, state dicts."""
