"""Values "auto" that follow from the model and the rest of the configuration, as Hugging Face's integration fills them in. (Its
Trainer and Accelerate have done so before the engine sees the configuration, and have more to go by: their own arguments.)"""

import copy


def resolved(given, model, notes):
    """`given` with those values in place, each of which is noted. What stays "auto" is the default. model: None: not known."""
    if not isinstance(given, dict):
        return given
    given = copy.copy(given)
    hidden = _hidden_size(model)
    zero = given.get("zero_optimization")
    if hidden is not None and isinstance(zero, dict):
        given["zero_optimization"] = zero = dict(zero)
        for key in ("stage3_param_persistence_threshold", "param_persistence_threshold"):
            if zero.get(key) == "auto" and zero.get("stage") == 3:
                zero[key] = 10 * hidden
                notes.append(f"zero_optimization.{key}: auto is {10 * hidden}, 10 times the model's hidden size")
    scheduler = given.get("scheduler")
    if isinstance(scheduler, dict) and isinstance(scheduler.get("params"), dict):
        params = dict(scheduler["params"])
        given["scheduler"] = {**scheduler, "params": params}
        for key, value, words in (
            ("warmup_min_lr", 0, ""),
            ("warmup_max_lr", _rate(given), ", the optimizer's lr"),
        ):
            if params.get(key) == "auto" and value is not None:
                params[key] = value
                notes.append(f"scheduler.params.{key}: auto is {value}{words}")
    return given


def _rate(given):
    optimizer = given.get("optimizer")
    params = optimizer.get("params") if isinstance(optimizer, dict) else None
    rate = params.get("lr") if isinstance(params, dict) else None
    return None if isinstance(rate, str) else rate


def _hidden_size(model):
    """Of the model's configuration, the largest, or that of its text part; None if it tells none."""
    config = getattr(model, "config", None)
    for part in (config, getattr(config, "text_config", None)):
        size = getattr(part, "hidden_size", None)
        if isinstance(size, int):
            return size
        sizes = getattr(part, "hidden_sizes", None)
        if isinstance(sizes, (list, tuple)) and sizes and all(isinstance(s, int) for s in sizes):
            return max(sizes)
    return None
