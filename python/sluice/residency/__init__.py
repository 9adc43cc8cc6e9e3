"""Parameters of modules whose values are on the tiers: units, who owns a parameter, what it lends, gradients."""
