"""DeepSpeed's names: configuration, schedules, initialize(), zero, utils, ops. Their public paths leave `deepspeed` out
(sluice.zero)."""
