"""The list of names (tests/python/deepspeed_names.txt) has what the installed frameworks say of `deepspeed`: read in their sources."""

import ast
import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LISTED = {
    tuple(line.split()[:2])
    for line in (ROOT / "tests" / "python" / "deepspeed_names.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
MODULES = {module for module, _ in LISTED}
# Local variables of that name, which hold other things.
NOT_THE_MODULE = {
    ("transformers", "deepspeed.save_checkpoint"),
    ("transformers", "deepspeed.config"),
    ("transformers", "deepspeed._zero3_consolidated_16bit_state_dict"),
    ("accelerate", "deepspeed.HfDeepSpeedConfig"),
}


def uses_of(tree):
    """(dotted path, line) of every use of the package in a module, by import or attribute."""
    aliases = {"deepspeed": "deepspeed"}
    inner = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "deepspeed":
                    if name.asname:
                        aliases[name.asname] = name.name
                    if name.name != "deepspeed":
                        yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "deepspeed":
            for name in node.names:
                yield f"{node.module}.{name.name}", node.lineno
                if f"{node.module}.{name.name}" in MODULES:
                    aliases[name.asname or name.name] = f"{node.module}.{name.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            parts, below = [node.attr], node.value
            while isinstance(below, ast.Attribute):
                inner.add(id(below))
                parts.append(below.attr)
                below = below.value
            if isinstance(below, ast.Name) and below.id in aliases:
                yield ".".join([aliases[below.id], *reversed(parts)]), node.lineno


def is_listed(path):
    """Whether it is a module of the list, a name of one, or an attribute of such a name."""
    parts = path.split(".")
    module = next(n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in MODULES)
    return module == len(parts) or (".".join(parts[:module]), parts[module]) in LISTED


def sources(package):
    folder = pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0])
    for path in folder.rglob("*.py"):
        text = path.read_text(errors="replace")
        if "deepspeed" in text and "tests" not in path.relative_to(folder).parts:
            yield path.relative_to(folder), ast.parse(text)


@pytest.mark.parametrize("package", ["transformers", "accelerate", "peft", "trl", "lightning"])
def test_every_name_that_a_framework_says_is_listed(package):
    found = [(path, line, use) for path, tree in sources(package) for use, line in uses_of(tree)]
    found = [item for item in found if not any((package, ".".join(item[2].split(".")[:2])) == other for other in NOT_THE_MODULE)]
    assert found
    missing = [f"{path}:{line}: {use}" for path, line, use in found if not is_listed(use)]
    assert not missing, "\n".join(missing)
