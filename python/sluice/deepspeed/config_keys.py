"""Every key of DeepSpeed's JSON, and of Sluice's own section, with what it does here.

KEYS mirrors the JSON: a dict is a section, a Key a value. docs/config.md shows it as a table (config_table.py).
"""

from ..settings.keys import CLIP_NORM, INT32_MAX, NO_EFFECT, OWN, PERSISTENCE_THRESHOLD, REFUSED, Key, use


def _note(reason):
    return Key(NO_EFFECT, reason)


def _refuse(advice, *off):
    return Key(REFUSED, advice, off=off)


def _feature(advice):
    return Key(REFUSED, advice, off=(None, False), off_section=True)


_AS_MADE = _note("gradients are exchanged as they are made, in units, whatever the stage")
_UNITS = _note("what ranks exchange goes in whole units: sluice.unit_elements sets how large they are at most")
_GATHERED = _note("parameters are gathered in units, ahead of their use, straight into place")
_SHARDS = _note("each rank is sent its shard of the others' gradients, and adds it up, at every stage")
_IN_FP32 = _note("gradients go in their own type (data_types.grad_accum_dtype), and are added up over ranks in fp32, then divided")
_TRACE = _note("the schedule follows the trace and the budgets: set sluice.hbm")
_LEAF = _note("units come and go in whatever order each rank uses them")
_DEBUG = _note("Engine.report() and Engine.write_trace() tell more")
_CHECKPOINTS = _note("checkpoints are of Sluice's own form (docs/checkpoints.md)")
_ANY_RANKS = _note("every checkpoint of Sluice's loads on any number of ranks; DeepSpeed's own are not read")
_MONITOR = _feature("not offered: log from the training loop (Engine.report() has the counters)")
_ZEROPP = "ZeRO++ is not offered: leave it out"
_FP32 = "states are fp32: leave it out"

_OFFLOAD_COMMON = {
    "nvme_path": use("paths", None, "directory on the drive to use; several may be given under sluice.nvme_path"),
    "pin_memory": _note("the arenas are pinned by design"),
    "buffer_count": _note("the number of buffers follows the pinned budget"),
}

_ZERO = {
    "stage": use((0, 1, 2, 3), 0, "what several ranks share: 0 nothing, 1 and 2 states and gradients, 3 parameters too; with one rank no difference"),
    "offload_optimizer": {
        "device": use(
            ("none", "cpu", "nvme"),
            "none",
            "how far down states may go; `none`: HBM on CUDA, with all parameters and gradients; RAM on the host",
        ),
        **_OFFLOAD_COMMON,
        "pipeline": _note("reads are always ahead and writes always behind"),
        "pipeline_read": _note("reads are always ahead"),
        "pipeline_write": _note("writes are always behind"),
        "fast_init": _note("states are written once at start in any case"),
        "ratio": _refuse("a part of the update on the GPU is not offered: leave it out", 1.0, 1),
        "super_offload": _refuse("updates always run under the next forward: leave it out", False),
        "cpuadam_cores_perc": _note("set sluice.workers"),
        "buffer_size": _refuse("DeepSpeed does not have it any more either: set sluice.pinned"),
    },
    "offload_param": {
        "device": use(("none", "cpu", "nvme"), "none", "how far down parameters may go; `none`: all stay in HBM. Several ranks: `nvme` at stage 3 only, RAM at others"),
        **_OFFLOAD_COMMON,
        "buffer_size": _note("set sluice.hbm and sluice.pinned"),
        "max_in_cpu": _note("set sluice.pinned"),
    },
    "param_persistence_threshold": PERSISTENCE_THRESHOLD,
    "contiguous_gradients": _note("gradients are always contiguous, in pinned memory, or in HBM if states are, or on NVMe if RAM can't hold them"),
    "overlap_comm": _note("exchange always overlaps compute; sluice.overlap: false is for finding faults"),
    "reduce_scatter": _SHARDS,
    "reduce_bucket_size": _UNITS,
    "use_multi_rank_bucket_allreduce": _SHARDS,
    "allgather_partitions": _GATHERED,
    "allgather_bucket_size": _UNITS,
    "round_robin_gradients": _note("each rank keeps, copies and updates its own shard only"),
    "use_all_reduce_for_fetch_params": _GATHERED,
    "allgather_sequential": _GATHERED,
    "sub_group_size": _note("states move in chunks: set sluice.chunk_elements"),
    "prefetch_bucket_size": _TRACE,
    "model_persistence_threshold": _TRACE,
    "max_live_parameters": _TRACE,
    "max_reuse_distance": _TRACE,
    "module_granularity_threshold": _TRACE,
    "leaf_module": {"classes": _LEAF, "names": _LEAF, "name_suffixes": _LEAF},
    "log_trace_cache_warnings": _DEBUG,
    "enable_sanity_checks": _note("checks are always on"),
    "gather_16bit_weights_on_model_save": _note("state_dict() always gathers"),
    "gather_fp16_weights_on_model_save": _note("state_dict() always gathers"),
    "ignore_unused_parameters": _note("parameters without gradient are left alone"),
    "load_from_fp32_weights": _note("the fp32 masters are always loaded as they were saved"),
    "elastic_checkpoint": _ANY_RANKS,
    "pipeline_loading_checkpoint": _note("each rank reads its own part only"),
    "override_module_apply": _note("sluice.zero.Init serves apply()"),
    "memory_efficient_linear": _note("linear layers are PyTorch's own"),
    "legacy_stage1": _refuse("leave it out", False),
    "cpu_offload": _refuse('write "offload_optimizer": {"device": "cpu"}', False, None),
    "cpu_offload_param": _refuse('write "offload_param": {"device": "cpu"}', False, None),
    "cpu_offload_use_pin_memory": _note("the arenas are pinned by design"),
    "aio": _refuse("aio belongs at the top level of the file, beside zero_optimization"),
    "zenflow": _refuse("ZenFlow is not offered: updates already run under the next forward; leave it out", None),
    "zero_hpz_partition_size": _refuse(_ZEROPP, 1),
    "zero_quantized_weights": _refuse(_ZEROPP, False),
    "zero_quantized_nontrainable_weights": _refuse(_ZEROPP, False),
    "zero_quantized_gradients": _refuse(_ZEROPP, False),
    "zeropp_loco_param": _refuse(_ZEROPP, None),
    "mics_shard_size": _refuse("MiCS is not offered: leave it out", -1),
    "mics_hierarchical_params_gather": _refuse("MiCS is not offered: leave it out", False),
    "save_muon_momentum_buffer_in_memory": _refuse("Muon is not offered: leave it out", False),
}

KEYS = {
    "train_batch_size": use("positive", None, "micro batch x accumulation x ranks; any two of the three give the third"),
    "train_micro_batch_size_per_gpu": use("positive", 1, "of the data loader that initialize() makes"),
    "gradient_accumulation_steps": use("positive", 1, "micro-steps per update; backward() divides the loss by it"),
    "managed_gradient_accumulation": use("bool", True, "false: every step() updates; backward() still divides"),
    "gradient_clipping": CLIP_NORM,
    "steps_per_print": use("positive", None, "prints step, skipped steps, rates and betas every so many steps"),
    "wall_clock_breakdown": use("bool", False, "prints forward, backward and step times in ms, every step"),
    "dataloader_drop_last": use("bool", False, "drops the last, smaller batch"),
    "optimizer": {
        "type": use("text", "AdamW", '"AdamW" or "Adam"; "Adam" means AdamW unless adam_w_mode is false'),
        "params": {
            "lr": use("number", 1e-3, "learning rate"),
            "betas": use("betas", (0.9, 0.999), ""),
            "eps": use("number", 1e-8, ""),
            "weight_decay": use(
                "number", 0.0, "0 as DeepSpeed's own Adam has it, also for AdamW; 0.01 with torch_adam"
            ),
            "bias_correction": use("bool", True, ""),
            "adam_w_mode": use("bool", True, 'for type "Adam": false adds the decay to the gradient'),
            "torch_adam": use("bool", False, "the arithmetic is Sluice's own; only AdamW's default decay changes"),
            "amsgrad": _refuse("not offered: leave it out", False),
            "fp32_optimizer_states": _refuse(_FP32, True),
            "max_grad_norm": _refuse("use gradient_clipping"),
        },
        "legacy_fusion": _note("there is one fused pass"),
    },
    "scheduler": {
        "type": use(
            "text", None, "DeepSpeed's LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR, WarmupCosineLR, or torch's"
        ),
        "params": use("section", None, "as the class takes them"),
    },
    "fp16": {
        "enabled": use("bool", False, "parameters and gradients in fp16, with loss scaling"),
        "loss_scale": use("number", 0, "0: dynamic"),
        "initial_scale_power": use("count", 16, "the first scale is 2 to this power", high=126),
        "loss_scale_window": use("positive", 1000, "steps without overflow until the scale doubles"),
        "hysteresis": use("positive", 2, "overflows until the scale is halved", high=INT32_MAX),
        "consecutive_hysteresis": use("bool", False, "a step without overflow restores hysteresis"),
        "min_loss_scale": use("number", 1, ""),
        "auto_cast": _refuse("cast the inputs in the model instead", False),
        "fp16_master_weights_and_grads": _refuse(_FP32, False),
    },
    "bf16": {
        "enabled": use("bool", False, "parameters and gradients in bf16"),
        "immediate_grad_update": _note("gradients leave as soon as they are there"),
        "check_grad_overflow": _note("a step with non-finite gradients is always skipped"),
        "bf16_master_weights_and_grads": _refuse(_FP32, False),
        "bf16_optimizer_states": _refuse(_FP32, False),
    },
    "data_types": {
        "grad_accum_dtype": use(
            ("fp32", "bf16", "fp16"), None, "type gradients are kept and added in; default: the model's"
        ),
        "param_dtype": _refuse("set bf16.enabled or fp16.enabled", None),
        "buffer_dtype": _refuse("set bf16.enabled or fp16.enabled; buffers follow", None),
    },
    "zero_optimization": _ZERO,
    "aio": {
        "queue_depth": use("positive", None, "transfers in the kernel at a time; default: chosen", high=1024),
        "block_size": _note("transfers are chunks: set sluice.chunk_elements"),
        "intra_op_parallelism": _note("one thread keeps the queue full"),
        "single_submit": _note("at most a few transfers are submitted per call"),
        "overlap_events": _note("the queue is always refilled as transfers end"),
        "use_gds": _refuse("GPUDirect Storage is not used: leave it out", False),
    },
    "zero_allow_untested_optimizer": _note("AdamW is the library's own"),
    "zero_force_ds_cpu_optimizer": _note("AdamW is the library's own"),
    "prescale_gradients": _IN_FP32,
    "gradient_predivide_factor": _IN_FP32,
    "gradient_allreduce_op": _refuse("gradients are averaged over ranks: multiply the loss by their number for the sum", "mean"),
    "communication_data_type": _IN_FP32,
    "seq_parallel_communication_data_type": _AS_MADE,
    "disable_allgather": _GATHERED,
    "fp32_allreduce": _IN_FP32,
    "sparse_gradients": _note("sparse gradients are made dense"),
    "memory_breakdown": _note("Engine.report() has the bytes of every tier"),
    "dump_state": _note("Engine.report() and Engine.config tell what was chosen"),
    "checkpoint": {
        "tag_validation": use(
            "text", "Warn", "where ranks save under different tags: `Warn` and take rank 0's, `Ignore` takes it without a word, `Fail`"
        ),
        "load_universal": _ANY_RANKS,
        "use_node_local_storage": _refuse("all ranks must see the directory of checkpoints: leave it out", False),
        "parallel_write": {"pipeline_stage": _CHECKPOINTS},
        "checkpoint_serialization": _CHECKPOINTS,
        "writer": _CHECKPOINTS,
    },
    "activation_checkpointing": {
        "partition_activations": _AS_MADE,
        "contiguous_memory_optimization": _note("activations are PyTorch's"),
        "cpu_checkpointing": _note("activations stay where PyTorch puts them"),
        "number_checkpoints": _note("the model decides, by sluice.checkpointing.checkpoint"),
        "synchronize_checkpoint_boundary": _note("there is nothing to wait for"),
        "profile": _DEBUG,
    },
    "amp": _feature("apex is not offered: use bf16 or fp16"),
    "torch_autocast": _feature("wrap the forward in torch.autocast instead"),
    "tensorboard": _MONITOR,
    "wandb": _MONITOR,
    "comet": _MONITOR,
    "csv_monitor": _MONITOR,
    "flops_profiler": _feature("not offered: use torch.profiler"),
    "comms_logger": _feature("one rank: there is nothing to log"),
    "autotuning": _feature("not offered: see docs/tuning.md"),
    "elasticity": _feature("not offered: leave it out"),
    "compression_training": _refuse("not offered: leave it out", None, {}),
    "data_efficiency": _feature("not offered: leave it out"),
    "curriculum_learning": _feature("not offered: leave it out"),
    "eigenvalue": _feature("not offered: leave it out"),
    "progressive_layer_drop": _feature("not offered: leave it out"),
    "sparse_attention": _refuse("not offered: leave it out", None),
    "hybrid_engine": _feature("not offered: leave it out"),
    "compile": _feature("not offered: use torch.compile on the layers' functions"),
    "pipeline": _refuse("pipeline parallelism is not offered: leave it out", None, {}),
    "tensor_parallel": _refuse("tensor parallelism is not offered: leave it out", None, {}, {"autotp_size": 0}),
    "sequence_parallel_size": _refuse("sequence parallelism is not offered: leave it out", 1),
    "nebula": _feature("not offered: leave it out"),
    "sluice": OWN,
}

# Other names, by section.
ALIASES = {
    "": {"bfloat16": "bf16"},
    "aio": {"thread_count": "intra_op_parallelism", "num_threads": "intra_op_parallelism"},
    "zero_optimization": {
        "stage3_" + key: key
        for key in (
            "prefetch_bucket_size",
            "param_persistence_threshold",
            "model_persistence_threshold",
            "max_live_parameters",
            "max_reuse_distance",
            "gather_16bit_weights_on_model_save",
            "gather_fp16_weights_on_model_save",
            "module_granularity_threshold",
            "use_all_reduce_for_fetch_params",
            "allgather_sequential",
        )
    },
}

# Optimizers that DeepSpeed has and Sluice does not.
OTHER_OPTIMIZERS = {
    "onebitadam": "1-bit Adam",
    "zerooneadam": "0/1 Adam",
    "onebitlamb": "1-bit LAMB",
    "lamb": "LAMB",
    "adagrad": "Adagrad",
    "lion": "Lion",
    "muon": "Muon",
    "muadam": "MuAdam",
    "muadamw": "MuAdamW",
    "musgd": "MuSGD",
    "fusedadam": "FusedAdam",
}
