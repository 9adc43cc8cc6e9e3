"""Lengths of files, include guards, and the paragraph that opens every header."""

import re

from tracked import ROOT, finish, tracked

LINES_BELOW = {".h": 250, ".hpp": 250, ".c": 400, ".cc": 400, ".cu": 400}
LONGER = {  # path: lines that it must stay below instead, and why
    "offload/sluice.h": 400,  # the whole C ABI, for those who embed it, in one header
    "offload/sluice.hpp": 400,  # the same in C++
}


def problems_of(name, text):
    suffix = name[name.rindex(".") :]
    limit = LONGER.get(name, LINES_BELOW[suffix])
    lines = text.count("\n")
    if lines >= limit:
        yield f"{name}:{lines}: must stay below {limit} lines: cut it by concept"
    if suffix in (".h", ".hpp"):
        guard = "SLUICE_" + re.sub(r"[^A-Z0-9]", "_", name.upper()) + "_"
        once = rf"^#ifndef {guard}\n#define {guard}\n"
        if name.endswith("-inl.h"):  # Highway's: once for each vector target
            once = rf"^#if defined\({guard}\) == defined\(HWY_TARGET_TOGGLE\)\n"
        if not re.search(once, text, re.MULTILINE):
            yield f"{name}:1: the include guard must be {guard}"
        if not text.startswith(("// ", "/* ")):
            yield f"{name}:1: must open with a paragraph that says what it is"


def self_test():
    """The check finds what it should, and nothing else."""
    header = "// a/b.h\n\n#ifndef SLUICE_A_B_H_\n#define SLUICE_A_B_H_\n#endif  // SLUICE_A_B_H_\n"
    assert not list(problems_of("a/b.h", header))
    assert len(list(problems_of("a/c.h", header))) == 1
    assert len(list(problems_of("a/b.h", header[header.index("#") :]))) == 1
    assert len(list(problems_of("a/b.h", header + "\n" * 250))) == 1
    assert not list(problems_of("a/b.cc", "\n" * 399))
    assert len(list(problems_of("a/b.cc", "\n" * 400))) == 1


def main():
    self_test()
    files = tracked(".h", ".hpp", ".c", ".cc", ".cu")
    problems = [p for name in files for p in problems_of(name, (ROOT / name).read_text())]
    problems += [f"shape.py: {name} is excepted but is gone" for name in LONGER if name not in files]
    finish(problems, len(files))


main()
