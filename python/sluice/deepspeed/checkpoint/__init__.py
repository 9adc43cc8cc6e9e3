"""DeepSpeed's `checkpoint`, as far as it is offered: utils."""
