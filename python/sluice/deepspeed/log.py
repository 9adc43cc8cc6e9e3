"""The logger that programs find under DeepSpeed's name. Sluice itself says little by it: engine.config_notes and engine.report()
have what there is to tell."""

import logging

logger = logging.getLogger("sluice.deepspeed")


def log_dist(message, ranks=None, level=logging.INFO):
    """Logs on these ranks; None or [-1]: on all."""
    from . import comm

    rank = comm.get_rank()
    if not ranks or -1 in ranks or rank in ranks:
        logger.log(level, "[rank %d] %s", rank, message)


_said = set()


def log_dist_once(message, ranks=None, level=logging.INFO):
    """log_dist(), the first time for each message."""
    if message not in _said:
        _said.add(message)
        log_dist(message, ranks, level)


def print_rank_0(message, debug=False, force=False):
    """Logs on rank 0."""
    log_dist(message, ranks=[0])


def set_log_level_from_string(level, custom_logger=None):
    """Of the logger: debug, info, warning, error or critical. Errors: ValueError."""
    number = logging.getLevelNamesMapping().get(str(level).upper())
    if number is None:
        raise ValueError(f"log level: must be debug, info, warning, error or critical, not {level!r}")
    (custom_logger or logger).setLevel(number)


def should_log_le(level):
    """Whether messages of that level, by name, are logged."""
    return logger.getEffectiveLevel() <= logging.getLevelNamesMapping().get(str(level).upper(), 0)
