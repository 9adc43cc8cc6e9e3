"""What ranks exchange, over the user's torch.distributed: this process's world, and the tables of functions by which the
library reaches the other ranks."""

from .world import World, decline, find_world, initialise, is_initialised, world_size

__all__ = ["World", "decline", "find_world", "initialise", "is_initialised", "world_size"]
