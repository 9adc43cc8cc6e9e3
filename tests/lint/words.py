"""Words that no tracked file may hold: paths of one machine, hosts of package registries, notes to self."""

import re

from tracked import ROOT, finish, tracked

# A bracket round one letter keeps the patterns from finding themselves.
WORDS = {
    "a path of one machine": r"(?<![\w.-])/(?:[w]ork|[r]oot|[h]ome/\w+|[o]pt/wheels)(?:/|\b)",
    "the host of a package registry": r"\b(?:[p]ypi\.org|[p]ythonhosted\.org|[d]ebian\.org|[p]ytorch\.org"
    r"|[n]pmjs\.org|[c]rates\.io|[u]buntu\.com|[a]naconda\.(?:org|com))\b",
    "a note to self": r"\b(?:[T]ODO|[F]IXME|[X]XX)\b",
}


def problems_of(name, text):
    for what, pattern in WORDS.items():
        for match in re.finditer(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{name}:{line}: {what}: {match.group()}"


def self_test():
    """The check finds what it should, and nothing else."""
    bad = ["/" + "work/x", '"/' + 'root/.cache"', "in /" + "home/me.", "files.python" + "hosted.org"]
    bad += ["deb.deb" + "ian.org", "// TO" + "DO(me): x", "FIX" + "ME"]
    good = ["network/x", "a/" + "work/x", "/proc/self/io", "TODOS", "the root / of", "path/" + "root/"]
    assert all(len(list(problems_of("a", text))) == 1 for text in bad)
    assert not any(list(problems_of("a", text)) for text in good)


def main():
    self_test()
    problems = []
    files = tracked()
    for name in files:
        text = (ROOT / name).read_bytes()
        if b"\0" not in text:
            problems += problems_of(name, text.decode())
    finish(problems, len(files))


main()
