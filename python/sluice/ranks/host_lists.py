"""Lists as others write them: Slurm's hosts ("node[01-03,7],login"), its counts ("4(x2),3"), the kernel's cores ("0-3,8")."""

import re

_COUNT = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_.-]*", re.ASCII)
_CORES_MAX = 1 << 16


def hosts_in(text):
    """The hosts of a Slurm list, in its order, one after the other: a list may name a million. Errors: ValueError, which
    comes when iteration reaches what is wrong."""
    for item in _split(text):
        yield from _expanded(item)


def _split(text):
    """The items between commas that are in no bracket."""
    depth, begin = 0, 0
    for at, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth not in (0, 1):
            raise ValueError(f"brackets don't match in {text!r}")
        if letter == "," and depth == 0:
            yield text[begin:at]
            begin = at + 1
    if depth != 0:
        raise ValueError(f"brackets don't match in {text!r}")
    yield text[begin:]


def _expanded(item):
    before, bracket, rest = item.partition("[")
    if not _NAME.fullmatch(before) or not (before or bracket):
        raise ValueError(f"{item!r} is no name of a host")
    if not bracket:
        yield before
        return
    inside, _, after = rest.partition("]")
    for part in inside.split(","):
        match = _RANGE.fullmatch(part)
        first, last = (match.group(1), match.group(2) or match.group(1)) if match else ("1", "0")
        if int(first) > int(last):
            raise ValueError(f"{part!r} in {item!r} is no range")
        for number in range(int(first), int(last) + 1):
            for end in _expanded(after) if after else [""]:
                yield f"{before}{number:0{len(first)}}{end}"


def tasks_of_node(text, node):
    """How many tasks "4(x2),3" gives to the node of that number. Errors: ValueError."""
    passed = 0
    for part in text.split(","):
        match = _COUNT.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no count of tasks")
        passed += int(match.group(2) or 1)
        if node < passed:
            return int(match.group(1))
    raise ValueError(f"{text!r} has no node {node}")


def cores_in(text):
    """(0, 1, 2, 3, 8) of "0-3,8"; () of nothing. Errors: ValueError."""
    cores = set()
    for part in text.strip().split(",") if text.strip() else []:
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match.group(1)), int(match.group(2) or match.group(1))) if match else (1, 0)
        if first > last or last >= _CORES_MAX:
            raise ValueError(f"{part!r} is no core and no range of cores")
        cores.update(range(first, last + 1))
    return tuple(sorted(cores))
