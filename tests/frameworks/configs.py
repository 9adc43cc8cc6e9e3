"""Configurations as people have them, with "auto" where frameworks fill in."""

OPTIMIZER = {
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}
}
SCHEDULER = {
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "total_num_steps": "auto",
            "warmup_min_lr": "auto",
            "warmup_max_lr": "auto",
            "warmup_num_steps": "auto",
            "warmup_type": "linear",
        },
    }
}


def config(stage, folder, **more):
    """Stage 3 has everything on the drive, 2 states in RAM."""
    zero = {"stage": stage}
    if stage == 2:
        zero["offload_optimizer"] = {"device": "cpu"}
    if stage == 3:
        drive = {"device": "nvme", "nvme_path": str(folder), "pin_memory": True}
        zero |= {
            "offload_optimizer": drive,
            "offload_param": drive,
            "overlap_comm": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": float("inf"),
        "zero_optimization": zero,
        **more,
    }
