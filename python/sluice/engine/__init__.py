"""A model on the tiers that trains, as attach() and initialize() make it."""
