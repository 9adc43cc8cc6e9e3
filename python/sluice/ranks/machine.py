"""What the kernel says of this machine's cores, NUMA nodes and GPUs. `root` is "/", or a tree like it in tests."""

import os
import pathlib
import re

from .host_lists import cores_in


def _read(path):
    try:
        return path.read_text()
    except OSError:
        return ""


def allowed_cores():
    """The cores that the calling thread may run on, ascending."""
    return tuple(sorted(os.sched_getaffinity(0)))


def siblings_of(cores, root="/"):
    """{core: the hardware threads of its physical core}, of those of which the kernel says it."""
    folder = pathlib.Path(root, "sys/devices/system/cpu")
    texts = {core: _read(folder / f"cpu{core}/topology/thread_siblings_list") for core in cores}
    return {core: cores_in(text) for core, text in texts.items() if text.strip()}


def nodes_of_machine(root="/"):
    """{NUMA node: its cores}; {} where the kernel knows none."""
    folder = pathlib.Path(root, "sys/devices/system/node")
    found = {}
    for path in folder.glob("node[0-9]*") if folder.is_dir() else []:
        found[int(path.name[4:])] = cores_in(_read(path / "cpulist"))
    return dict(sorted((node, cores) for node, cores in found.items() if cores))


def node_of_gpu(gpu, root="/"):
    """The NUMA node of an NVIDIA GPU, by its number in the order of the PCI bus or by its "GPU-..." name, or None where the
    kernel doesn't say."""
    folder = pathlib.Path(root, "proc/driver/nvidia/gpus")
    try:
        buses = sorted(os.listdir(folder))
    except OSError:
        return None
    if gpu.isdecimal():
        found = buses[int(gpu) : int(gpu) + 1]
    else:
        names = {bus: re.search(r"GPU UUID:\s*(\S+)", _read(folder / bus / "information")) for bus in buses}
        found = [bus for bus, name in names.items() if name and name.group(1).startswith(gpu)]
    if len(found) != 1:
        return None
    text = _read(pathlib.Path(root, "sys/bus/pci/devices", found[0].lower(), "numa_node")).strip()
    return int(text) if text.isdecimal() else None  # -1: no node
