"""DeepSpeed's leaf modules: marks that scripts set and list. They have no effect here, since units come and go in whatever order
each rank uses them: a rank may run other experts than the others, in any step."""


def _mark(model, matches, what, flag):
    found = [module for module in model.modules() if matches(module)]
    if not found:
        raise ValueError(f"the model has no modules {what}")
    for module in found:
        module._z3_leaf = flag
    return found


def _class_matcher(classes):
    names = [name for name in classes if isinstance(name, str)]
    types = tuple(kind for kind in classes if isinstance(kind, type))
    if not classes or len(names) + len(types) != len(classes):
        raise TypeError(f"classes, or their names, are needed, not {classes!r}")

    def matches(module):
        kind = type(module)
        return kind in types or kind.__name__ in names or f"{kind.__module__}.{kind.__qualname__}" in names

    return matches


def set_z3_leaf_modules(model, leaf_module_classes):
    """Marks the modules of these classes (or names of classes), and returns them. Errors: ValueError if there are none."""
    return _mark(model, _class_matcher(leaf_module_classes), f"of the classes {leaf_module_classes}", True)


def unset_z3_leaf_modules(model, leaf_module_classes):
    """Takes the mark of those, and returns them. Errors: ValueError if there are none."""
    return _mark(model, _class_matcher(leaf_module_classes), f"of the classes {leaf_module_classes}", False)


def _named(model, wanted):
    names = {id(module): name for name, module in model.named_modules()}
    return lambda module: wanted(names[id(module)])


def set_z3_leaf_modules_by_name(model, module_names):
    """As set_z3_leaf_modules, of the modules of these names."""
    return _mark(model, _named(model, lambda name: name in module_names), f"named {module_names}", True)


def set_z3_leaf_modules_by_suffix(model, module_name_suffixes):
    """As set_z3_leaf_modules, of the modules whose names end so."""
    ends = tuple(module_name_suffixes)
    return _mark(model, _named(model, lambda name: name.endswith(ends)), f"whose names end with {ends}", True)


def set_z3_leaf_module(model, flag):
    """Marks one module, or takes its mark."""
    model._z3_leaf = bool(flag)


def z3_leaf_module(model):
    """Whether the module is marked."""
    return getattr(model, "_z3_leaf", False)


def get_z3_leaf_modules(model):
    """The modules of the model that are marked."""
    return [module for module in model.modules() if z3_leaf_module(module)]


def z3_leaf_parameter(param):
    """Whether a parameter belongs to a module that is fetched as a whole: none does."""
    return False
