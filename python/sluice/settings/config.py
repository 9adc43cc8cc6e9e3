"""What an engine is to be like, whoever says it: a file of DeepSpeed's, or the arguments of attach()."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    """What the engine needs. Sizes in bytes; None: chosen by the library."""

    micro_batch: int = 1
    accumulation: int = 1
    managed_accumulation: bool = True
    clip_norm: float = 1.0
    dtype: str = "fp32"  # of parameters in compute: fp32, bf16, fp16
    grad_dtype: str | None = None  # None: as dtype
    loss_scale: dict = dataclasses.field(default_factory=dict)  # fp16 keys
    optimizer: dict | None = None  # lr, betas, eps, weight_decay, l2_decay, bias_correction
    scheduler: tuple | None = None  # name of the class, its arguments
    zero_stage: int = 0
    offload_optimizer: str = "none"
    offload_param: str = "none"
    nvme_paths: tuple = ()
    persistence_threshold: int | None = None
    queue_depth: int | None = None
    drop_last: bool = False
    steps_per_print: int | None = None
    wall_clock_breakdown: bool = False
    tag_validation: str = "warn"  # where ranks save a checkpoint under different tags: warn, ignore, fail
    own: dict = dataclasses.field(default_factory=dict)  # the "sluice" section
    given: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)  # the JSON, as it came
    notes: tuple = ()  # "key: reason" of every key accepted without effect

    def get(self, key, default=None):
        """Of the JSON, as it was given, by which programs ask engine.config."""
        return self.given.get(key, default)

    def __getitem__(self, key):
        return self.given[key]

    def __contains__(self, key):
        return key in self.given
