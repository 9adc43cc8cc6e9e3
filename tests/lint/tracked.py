"""What the lint tests look at: the files that git tracks, named from the repository's root."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

_INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]', re.MULTILINE)


def tracked(*suffixes):
    """Paths of tracked files that exist and end with one of `suffixes` (all without any)."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True)
    if listed.returncode != 0:
        sys.exit(f"lint looks at what git tracks, and git failed: {listed.stderr.decode().strip()}")
    names = [name for name in listed.stdout.decode().split("\0") if name.endswith(suffixes or "")]
    return [name for name in names if name and (ROOT / name).is_file()]


def includes(text):
    """(line number, path) of every #include in `text`."""
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in _INCLUDE.finditer(text)]


def finish(problems, checked):
    """Prints the problems and exits with 1, or says how much was fine. Nothing checked is a failure."""
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(f"{len(problems)} problems")
    if checked == 0:
        sys.exit("nothing was checked")
    print(f"{checked} files, no problems")
