"""clang-format 14 leaves every tracked C++ file as it is."""

import shutil
import subprocess
import sys

from tracked import ROOT, finish, tracked


def main():
    tool = shutil.which("clang-format-14")
    if tool is None:
        sys.exit("clang-format-14 is not installed: run scripts/setup --tests")
    problems = []
    files = tracked(".h", ".hpp", ".c", ".cc", ".cu")
    for name in files:
        text = (ROOT / name).read_bytes()
        # --assume-filename finds the .clang-format that would be found for the file itself.
        command = [tool, "--assume-filename", str(ROOT / name)]
        formatted = subprocess.run(command, input=text, capture_output=True, check=True).stdout
        if formatted == text:
            continue
        pairs = enumerate(zip(text.splitlines(), formatted.splitlines()), start=1)
        first = next((line for line, (a, b) in pairs if a != b), len(formatted.splitlines()))
        problems.append(f"{name}:{first}: differs from here on: clang-format-14 -i {name}")
    finish(problems, len(files))


main()
