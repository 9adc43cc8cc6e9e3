"""Where a program finds what it imports from `deepspeed`: by module, ours under that name, or why there is none."""

PEER_VERSION = "0.19.8"  # whose names these are

# `deepspeed.X` is this module of `sluice`, and no copy of it.
MODULES = {
    "": "deepspeed",
    "accelerator": "deepspeed.accelerator",
    "accelerator.real_accelerator": "deepspeed.accelerator",
    "checkpoint": "deepspeed.checkpoint",
    "checkpoint.utils": "deepspeed.checkpoint.utils",
    "checkpointing": "deepspeed.checkpointing",
    "comm": "deepspeed.comm",
    "comm.comm": "deepspeed.comm",
    "git_version_info": "deepspeed.version",
    "ops": "deepspeed.ops",
    "ops.adam": "deepspeed.ops.adam",
    "ops.adam.cpu_adam": "deepspeed.ops.adam",
    "ops.adam.fused_adam": "deepspeed.ops.adam",
    "runtime": "deepspeed.runtime",
    "runtime.activation_checkpointing": "deepspeed",  # its `checkpointing`
    "runtime.activation_checkpointing.checkpointing": "deepspeed.checkpointing",
    "runtime.base_optimizer": "engine.optimizer",
    "runtime.config": "deepspeed.config",
    "runtime.config_utils": "deepspeed.config",
    "runtime.dataloader": "deepspeed.runtime.dataloader",
    "runtime.engine": "deepspeed",  # its DeepSpeedEngine
    "runtime.lr_schedules": "deepspeed.schedulers",
    "runtime.utils": "deepspeed.runtime.utils",
    "runtime.zero": "deepspeed.zero",
    "runtime.zero.offload_config": "deepspeed.offload_config",
    "runtime.zero.partition_parameters": "deepspeed.parameters",
    "utils": "deepspeed.utils",
    "utils.groups": "deepspeed.utils.groups",
    "utils.logging": "deepspeed.log",
    "utils.tensor_fragment": "deepspeed.utils",
    "utils.z3_leaf_module": "deepspeed.leaf_modules",
    "utils.zero_to_fp32": "deepspeed.utils.zero_to_fp32",
    "version": "deepspeed.version",
    "zero": "deepspeed.zero",
}

_PIPELINES = "pipeline parallelism is not offered"
_TENSORS = "tensor parallelism and kernel injection are not offered"
_INFERENCE = "inference is model.eval() under torch.no_grad() with sluice.initialize()"
_SEQUENCES = "sequence parallelism is not offered"
_OTHER_OPTIMIZER = "use AdamW or Adam"
_CHECKPOINTS = "checkpoints of DeepSpeed's are not read yet"

# Of these, and all below them, every name can be imported and nothing be used.
REFUSED = {
    "autotuning": "see docs/tuning.md",
    "checkpoint.ds_to_universal": _CHECKPOINTS,
    "checkpoint.deepspeed_checkpoint": _CHECKPOINTS,
    "compile": "use torch.compile on what the layers call",
    "compression": "compression is not offered",
    "elasticity": "elastic training is not offered",
    "inference": _INFERENCE,
    "io": "files are read and written by the runtime",
    "launcher": "start ranks by torchrun or `sluice launch` (docs/launch.md)",
    "linear": "DeepSpeed's linear layers are not offered: torch's own modules work",
    "model_implementations": _INFERENCE,
    "module_inject": _TENSORS,
    "moe": "DeepSpeed's expert layers are not offered; torch's own modules work",
    "monitor": "log from the training loop (Engine.report() has the counters)",
    "nebula": "not offered",
    "ops.adagrad": _OTHER_OPTIMIZER,
    "ops.aio": "files are read and written by the runtime",
    "ops.lamb": _OTHER_OPTIMIZER,
    "ops.lion": _OTHER_OPTIMIZER,
    "ops.muon": _OTHER_OPTIMIZER,
    "ops.op_builder": "nothing is compiled at import",
    "ops.sparse_attention": "torch.nn.functional.scaled_dot_product_attention takes masks",
    "ops.transformer": "DeepSpeed's layers are not offered: torch's own modules work",
    "pipe": _PIPELINES,
    "profiling": "use torch.profiler; Engine.report() and Engine.write_trace() tell more",
    "runtime.bf16_optimizer": "the engine has one optimizer for all types: engine.optimizer",
    "runtime.compiler": "use torch.compile on what the layers call",
    "runtime.data_pipeline": "not offered",
    "runtime.domino": _TENSORS,
    "runtime.fp16": "the engine has one optimizer for all types: engine.optimizer",
    "runtime.hybrid_engine": _INFERENCE,
    "runtime.pipe": _PIPELINES,
    "runtime.sequence_parallel": _SEQUENCES,
    "runtime.swap_tensor": "files are read and written by the runtime",
    "runtime.tensor_parallel": _TENSORS,
    "runtime.zenflow": "updates already run under the next forward",
    "runtime.zero.parameter_offload": "units come and go by themselves",
    "runtime.zero.stage3": "the engine has one optimizer for all stages: engine.optimizer",
    "runtime.zero.stage_1_and_2": "the engine has one optimizer for all stages: engine.optimizer",
    "runtime.zero.tiling": "large layers are moved as they are, or in smaller units (sluice.unit_elements)",
    "sequence": _SEQUENCES,
}


def refused(name):
    """Why there is no module of that name below `deepspeed`; None: it is no name of DeepSpeed's that is known here."""
    while name:
        if name in REFUSED:
            return REFUSED[name]
        name = name.rpartition(".")[0]
    return None
