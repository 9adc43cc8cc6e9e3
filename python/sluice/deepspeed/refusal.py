"""Names that DeepSpeed has and Sluice does not: whoever asks for one is told what to do instead."""


def of_names(module, advice):
    """The __getattr__ of the module of that name. advice: by name that is not offered."""

    def refuse(name):
        if name in advice:
            raise AttributeError(f"{module}.{name} is not offered: {advice[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return refuse
