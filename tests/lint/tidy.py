"""clang-tidy 14 over the product's sources, as compiled: tidy.py BUILD_FOLDER.

A source that was fine before is not looked at again while nothing it depends on in the repository
has changed; BUILD_FOLDER/tidy remembers.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

from tracked import ROOT, finish, includes, tracked

FOLDERS = ("core/", "nvme/", "comm/", "optim/", "offload/", "tools/")


def closure(name, known):
    """`name` and every header of the repository that it includes, however deep."""
    found, todo = set(), [name]
    while todo:
        current = todo.pop()
        if current in found:
            continue
        found.add(current)
        text = (ROOT / current).read_text()
        todo += [path for _, path in includes(text) if path in known]
    return sorted(found)


def key_of(name, command, known):
    """Changes with whatever the verdict on `name` may depend on, the system's headers excepted."""
    digest = hashlib.sha256(f"{command}\n".encode())
    for path in [".clang-tidy", "tests/lint/tidy.py", *closure(name, known)]:
        digest.update(f"{path}\n".encode() + (ROOT / path).read_bytes())
    return digest.hexdigest()


def check(tool, build, name):
    """What clang-tidy has to say about `name`; empty if nothing."""
    command = [tool, "-p", str(build), "--quiet", str(ROOT / name)]
    result = subprocess.run(command, capture_output=True, text=True)
    return "" if result.returncode == 0 else result.stdout + result.stderr


def main():
    build = pathlib.Path(sys.argv[1])
    tool = shutil.which("clang-tidy-14")
    if tool is None:
        sys.exit("clang-tidy-14 is not installed: run scripts/setup --tests")
    commands = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if path.is_relative_to(ROOT):
            commands[str(path.relative_to(ROOT))] = entry["command"]
    known = set(tracked(".h", ".cc"))
    names = [name for name in sorted(commands) if name in known and name.startswith(FOLDERS)]

    stamps = build / "tidy"
    stamps.mkdir(exist_ok=True)
    old = {path.name for path in stamps.iterdir()}
    keys = {name: key_of(name, commands[name], known) for name in names}
    todo = [name for name in names if keys[name] not in old]
    problems = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, output in zip(todo, pool.map(lambda name: check(tool, build, name), todo)):
            if output:
                problems.append(f"{name}:\n{output}")
            else:
                (stamps / keys[name]).touch()
    for stamp in old - set(keys.values()):
        (stamps / stamp).unlink()
    print(f"{len(todo)} of {len(names)} looked at anew")
    finish(problems, len(names))


main()
