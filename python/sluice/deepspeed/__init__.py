"""DeepSpeed's names over Sluice: initialize(), configuration, schedules, zero, utils, ops.

Their public paths leave `deepspeed` out (sluice.zero). To programs that say `deepspeed` themselves, and to frameworks that do, this
is that package once it was asked for:

    python -m sluice.deepspeed script.py ...                    before a script that stays as it is
    import sluice.deepspeed; sluice.deepspeed.install()         or as its first line
"""

from ..engine.engine import Engine as DeepSpeedEngine
from ..engine.optimizer import DeepSpeedOptimizer
from . import accelerator, checkpointing, comm, ops, refusal, runtime, schedulers, utils, version, zero
from .accelerator import get_accelerator
from .command_line import add_config_arguments, add_tuning_arguments
from .comm import init_distributed
from .config import ConfigError as DeepSpeedConfigError
from .dropin import install
from .initializing import initialize
from .log import log_dist, logger
from .version import git_branch, git_hash

__all__ = [
    "DeepSpeedConfigError",
    "DeepSpeedEngine",
    "DeepSpeedOptimizer",
    "accelerator",
    "add_config_arguments",
    "add_tuning_arguments",
    "checkpointing",
    "comm",
    "get_accelerator",
    "init_distributed",
    "initialize",
    "install",
    "log_dist",
    "logger",
    "ops",
    "runtime",
    "schedulers",
    "utils",
    "version",
    "zero",
]

__version__ = version.version
__version_major__, __version_minor__, __version_patch__ = map(int, __version__.split("."))
__git_hash__, __git_branch__ = git_hash, git_branch
dist = comm

# What DeepSpeed has under these names, and Sluice does not offer.
NOT_OFFERED = {
    "DeepSpeedConfig": "load_config() reads a configuration; engine.config has it",
    "DeepSpeedHybridEngine": "inference is model.eval() under torch.no_grad() with sluice.initialize()",
    "DeepSpeedInferenceConfig": "inference is model.eval() under torch.no_grad() with sluice.initialize()",
    "DeepSpeedTransformerConfig": "DeepSpeed's layers are not offered: torch's own modules work",
    "DeepSpeedTransformerLayer": "DeepSpeed's layers are not offered: torch's own modules work",
    "OnDevice": "build the model under sluice.init()",
    "PipelineEngine": "pipeline parallelism is not offered",
    "PipelineModule": "pipeline parallelism is not offered",
    "pipe": "pipeline parallelism is not offered",
    "tp_model_init": "tensor parallelism is not offered",
    "module_inject": "tensor parallelism and kernel injection are not offered",
    "replace_transformer_layer": "tensor parallelism and kernel injection are not offered",
    "init_inference": "inference is model.eval() under torch.no_grad() with sluice.initialize()",
    "default_inference_config": "inference is model.eval() under torch.no_grad() with sluice.initialize()",
    "InferenceEngine": "inference is model.eval() under torch.no_grad() with sluice.initialize()",
    "moe": "DeepSpeed's expert layers are not offered; torch's own modules work",
}

__getattr__ = refusal.of_names(__name__, NOT_OFFERED)
