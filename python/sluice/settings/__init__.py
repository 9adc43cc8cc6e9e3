"""What may be set, whoever sets it, and how it is checked."""
