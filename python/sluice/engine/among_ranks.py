"""What is the same on all ranks when an engine begins: the model, which is compared, and its values, which are rank 0's."""

from ..native.errors import SluiceError

_PART_S = 5


def check_same(world, model, config, units, optimized):
    """Errors: ValueError, on all ranks, if models or configurations differ."""
    own = {name: value for name, value in config.own.items() if name not in _OF_A_RANK}
    settings = (
        "zero_stage", "micro_batch", "accumulation", "managed_accumulation", "clip_norm", "dtype", "grad_dtype", "loss_scale",
        "offload_optimizer", "offload_param", "persistence_threshold",
    )  # fmt: skip
    lines = [f"{name} {getattr(config, name)}" for name in settings] + [f"sluice {sorted(own.items())}"]
    trained = {id(p) for p in optimized}
    for unit in units:
        lines.append(f"unit {unit.name} {unit.type.numbers}")
        for name, p in unit.parameters:
            words = "trained" if id(p) in trained else "not trained"
            lines.append(f"parameter {name} {tuple(p.shape)} {p.dtype} {words}")
    lines += [f"buffer {name} {tuple(b.shape)} {b.dtype}" for name, b in model.named_buffers()]
    world.check_same(lines, "the model or configuration")


# What ranks may have each in its own way.
_OF_A_RANK = {"hbm", "pinned", "nvme", "nvme_path", "device", "workers", "io_engine", "io_depth", "tuned", "trace_spans", "library"}


def of_rank_0(world, initial_values):
    """initial_values(parameter) of rank 0, on all."""

    def initial(parameter):
        value = initial_values(parameter).detach().cpu().contiguous()
        world.broadcast(value)
        return value

    return initial


def part(world, runtime):
    """Before a runtime is closed: what others need of it has reached them, if they come here too within some seconds."""
    try:
        if not runtime.report()["failure"] and runtime.drain_within(_PART_S):
            world.meet(_PART_S)
    except SluiceError:
        pass  # the runtime has failed, which the others know


def spread_buffers(world, model):
    """All ranks have rank 0's."""
    for _, buffer in model.named_buffers():
        world.share(buffer)
