"""`sluice launch`: starts ranks by torchrun, under the flags of the `deepspeed` launcher."""
