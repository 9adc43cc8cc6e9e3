"""The rules of settings: what a key or an argument takes. OWN: those of Sluice's own, which attach() and AdamW have as arguments
and a configuration under "sluice"; a dict is a section, which only a configuration has."""

import dataclasses

USED, NO_EFFECT, REFUSED = "used", "no effect", "refused"

# What the library takes at most (offload/abi/c_api_arguments.cc).
WHOLE_MAX = (1 << 63) - 1
BYTES_MAX = (1 << 61) - 1
INT32_MAX = (1 << 31) - 1


@dataclasses.dataclass(frozen=True)
class Key:
    """kind: USED, with the type of its values; NO_EFFECT, with the reason; REFUSED, with what to do instead, unless
    the value is one of `off`, or `off_section` is set and the value is a section that isn't enabled."""

    kind: str
    words: str
    type: object = None  # of values: a name in checking.py's table of types, or a tuple of choices
    default: object = None
    high: float | None = None  # of numbers: the most; None: what the type holds
    off: tuple = ()
    off_section: bool = False


def use(type_, default, words, high=None):
    return Key(USED, words, type_, default, high)


CLIP_NORM = use("number", 1.0, "by the global norm; 0: off. DeepSpeed's default is 1.0 too")
PERSISTENCE_THRESHOLD = use("count", None, "units of at most so many elements stay in HBM; default 16384")

OWN = {
    "device": use("text", "auto", "`auto`, `host`, `cuda` or `cuda:1` ...: where the model computes"),
    "hbm": use("size", None, "budget of device memory, such as 2GiB; default: chosen from the machine"),
    "pinned": use("size", None, "budget of pinned RAM"),
    "nvme": use("size", None, "budget of drive space; default: as needed"),
    "nvme_path": use("paths", None, "directory, or one per drive; goes before those of zero_optimization"),
    "workers": use("count", None, "threads that update states; default: one less than cores", high=1024),
    "io_engine": use(("auto", "io_uring", "libaio", "threads"), "auto", "how files are read and written"),
    "io_depth": use("count", None, "transfers in the kernel at a time; goes before aio.queue_depth", high=1024),
    "tuned": use(
        "path", None, "a file that `sluice tune` wrote: how transfers are made where neither these keys nor aio say it"
    ),
    "chunk_elements": use(
        "count", None, "elements moved at a time, a multiple of 4096; default: chosen", high=1 << 30
    ),
    "unit_elements": use(
        "count", None, "modules of at most so many elements are moved as one; default: by budget"
    ),
    "cast_buffers": use(
        "bool", False, "true: all buffers of floating point get the model's type, also tables such as rotary frequencies"
    ),
    "overlap": use("bool", True, "false: every movement waits for the one before (to find faults)"),
    "link_bytes_per_second": use("number", None, "host device: speed of the modelled link; default: as memory"),
    "trace_spans": use("count", 0, "room for so many spans of Engine.write_trace()", high=1 << 26),
    "rank_timeout": use(
        "number", 600, "seconds that a rank waits for another one before it fails, naming that one", high=2_000_000
    ),
    "reduction": use(
        ("ordered", "library"), "ordered",
        "how ranks add up gradients: `ordered`: in fp32, in their order, the same bits at every stage; `library`: as NCCL (or what "
        "else connects them) does, in the gradients' type, and without that promise",
    ),
    "checkpoint": {
        "keep_last": use("positive", None, "after a save, older checkpoints of its directory are removed, but so many", high=INT32_MAX),
        "keep_every": use("positive", None, "and but those whose number of steps it divides"),
        "rng": use("bool", False, "save the states of random number generators too (PyTorch's, Python's, numpy's), of each rank"),
    },
    "library": use("path", None, "another libsluice.so"),
    "simulated_seed": use("count", None, "with the simulated library: the seed of its world", high=(1 << 64) - 1),
}
