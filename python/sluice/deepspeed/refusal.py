"""Names that DeepSpeed has and Sluice does not. They can be imported and looked at; whoever uses one is told what to do
instead."""


class NotOffered(NotImplementedError, AttributeError):
    """The name of what was used, and what to use instead."""


class _Refusing(type):
    """The class of stand-ins. A stand-in is a class, so that isinstance() and type hints work; nothing is an instance of it."""

    def __call__(cls, *args, **kwargs):
        raise NotOffered(f"{cls._name} is not offered: {cls._advice}")

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(f"{cls._name} has no attribute {name!r}")
        raise NotOffered(f"{cls._name} is not offered: {cls._advice}")

    def __repr__(cls):
        return f"<{cls._name}: not offered>"


def stand_in(path, advice):
    """For the name at `path`. Called, or asked for an attribute, it raises NotOffered with the advice."""
    module, _, name = path.rpartition(".")
    return _Refusing(name, (), {"__module__": module, "__doc__": f"Not offered: {advice}.", "_name": path, "_advice": advice})


def of_names(module, advice):
    """The __getattr__ of the module of that name. advice: by name that is not offered."""
    made = {}

    def find(name):
        if name not in advice:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if name not in made:
            made[name] = stand_in(f"{module}.{name}", advice[name])
        return made[name]

    return find
