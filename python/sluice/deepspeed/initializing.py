"""initialize(): from a model and a configuration to an engine."""

import datetime

import torch

from ..collectives import find_world, initialise
from ..engine.engine import Engine, engine_of
from ..engine.optimizer import NoOptimizer
from . import dropin, parameters, schedulers
from .config import load_config
from .log import logger


def initialize(
    args=None,
    model=None,
    optimizer=None,
    model_parameters=None,
    training_data=None,
    lr_scheduler=None,
    distributed_port=None,
    mpu=None,
    dist_init_required=None,
    collate_fn=None,
    config=None,
    mesh_param=None,
    config_params=None,
):
    """Moves `model` onto the tiers as `config` (DeepSpeed's JSON as a dict or a path) says.

    Returns (engine, optimizer or None, training data loader or None, lr_scheduler or None). Without an optimizer, here or in
    the configuration, no states are kept: the engine evaluates, and does not train. model_parameters: what is trained,
    parameters or groups of them; None: what requires a gradient now. Frozen parameters that are named there, or in a
    client's optimizer, can train later; of the others no states are kept, and they are never written again.
    optimizer: a torch Adam or AdamW, or a function from the parameters to one. lr_scheduler: a scheduler made for that
    optimizer, or a function from an optimizer to a scheduler; it goes before the configured one. Errors: ConfigError;
    ResourceExhausted if a budget can't work, naming the smallest that would; ValueError where ranks have different models or
    configurations.

    Several ranks (torch.distributed, set up here if nobody has, as the launcher's environment says) train one model: all call
    this and everything that computes, steps, reads or writes values of the engine. Parameters and buffers are rank 0's;
    training_data is split among them.
    """
    if model is None:
        raise ValueError("model: a torch.nn.Module is needed")
    if mpu is not None or mesh_param is not None:
        raise ValueError("mpu, mesh_param: model parallelism is not offered")
    if config is None:
        config = config_params if config_params is not None else getattr(args, "deepspeed_config", None)
    if config is None:
        raise ValueError("config: a dict or the path of a JSON file is needed")

    def prepare(engine):
        engine.lr_scheduler = _make_scheduler(lr_scheduler, engine)
        if training_data is not None:
            engine.training_dataloader = _make_loader(training_data, engine.config, collate_fn, engine)

    read = load_config(config, model=model, scheduled=optimizer is not None or lr_scheduler is not None)
    patience = read.own.get("rank_timeout") or None
    if dist_init_required is not False:
        initialise(
            port=distributed_port, timeout=patience and datetime.timedelta(seconds=patience), alone=dropin.is_active()
        )
    world = find_world(patience)
    if dropin.is_active():
        _end_engine_of(model)
    try:
        engine = Engine(model, read, optimizer, model_parameters, prepare, world)
    except BaseException:
        if world is not None:
            world.close()
        raise
    if dropin.is_active() and read.zero_stage == 3:
        for parameter in model.parameters():
            parameters.mark(parameter)
    optimizer = None if isinstance(engine.optimizer, NoOptimizer) else engine.optimizer
    return engine, optimizer, engine.training_dataloader, engine.lr_scheduler


def _end_engine_of(model):
    """Frameworks make one engine after another over a model: what the first has trained is the model's."""
    before = engine_of(model)
    if before is not None:
        before.destroy()
        logger.info("initialize(): the model's engine before this one was destroyed, and its optimizer's states with it")


def _make_scheduler(client, engine):
    if isinstance(engine.optimizer, NoOptimizer):  # a configured schedule has nothing to set then
        if client is not None:
            raise ValueError("lr_scheduler: there is no optimizer for it: name one in the configuration or as optimizer=")
        return None
    if client is not None:
        return client if hasattr(client, "step") else client(engine.optimizer)
    if engine.config.scheduler is None:
        return None
    name, params = engine.config.scheduler
    return schedulers.find(name)(engine.optimizer, **params)


def _make_loader(data, config, collate_fn, engine):
    if engine.world_size > 1:
        if isinstance(data, torch.utils.data.IterableDataset):
            raise ValueError(
                "training_data: an IterableDataset can't be split among ranks from outside: make the DataLoader yourself, over one "
                "that gives each rank its own part"
            )
        sampler = torch.utils.data.distributed.DistributedSampler(data, engine.world_size, engine.global_rank)
        return torch.utils.data.DataLoader(
            data, batch_size=config.micro_batch, collate_fn=collate_fn, drop_last=config.drop_last, sampler=sampler
        )
    return torch.utils.data.DataLoader(
        data,
        batch_size=config.micro_batch,
        collate_fn=collate_fn,
        drop_last=config.drop_last,
        shuffle=not isinstance(data, torch.utils.data.IterableDataset),
    )
