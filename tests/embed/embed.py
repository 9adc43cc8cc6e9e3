"""Sluice as others see it once it is installed: embed.py BUILD_FOLDER PREFIX TEST.

install    puts what BUILD_FOLDER has built into PREFIX, emptied before
headers    each C header compiles by itself, as C11 and as C++
exports    the library exports the functions of sluice.h and nothing else
cmake      both examples, built outside the tree through find_package, run
pkgconfig  the same by the lines of docs/embedding.md, word for word
mpi        the example over MPI, built by `cmake`, comes to the same bits at every stage
memcheck   the C example, built by `cmake`, is clean under valgrind
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
SANE = {"embed_c": r"embed_c: 30 steps, loss \d+\.\d+ -> \d", "embed_cpp": r"embed_cpp: 25 steps, loss .* the same bits"}

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-long-long")


def run(*command, **options):
    """The command's output; its words and an end of this test if it fails."""
    command = [str(c) for c in command]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {result.returncode}\n{result.stdout}")
    return result.stdout


def lib_folder(prefix):
    return next(prefix.rglob("libsluice.so")).parent


def install(build, prefix):
    shutil.rmtree(prefix, ignore_errors=True)
    run("cmake", "--install", build, "--prefix", prefix)
    version = run(prefix / "bin" / "sluice", "--version")
    assert version.startswith("sluice "), version


def exports(build, prefix):
    folder = prefix / "include" / "sluice"
    text = "".join(header.read_text() for header in folder.glob("*.h"))
    declared = set(re.findall(r"\b(sluice_\w+)\(", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)))
    listed = run("nm", "-D", "--defined-only", lib_folder(prefix) / "libsluice.so")
    exported = {line.split()[-1] for line in listed.splitlines()}
    assert exported == declared, f"only in the library: {exported - declared}; only declared: {declared - exported}"


def headers(build, prefix):
    found = sorted((prefix / "include" / "sluice").glob("*.h"))
    assert [f.name for f in found] == ["sluice.h", "sluice_checkpoint.h", "sluice_comm.h"], found
    for header in found:
        for language, standard in (("c", "c11"), ("c++", "c++98")):
            run("cc", "-x", language, f"-std={standard}", *WARNINGS, "-fsyntax-only", header)


def run_examples(folder):
    """Both print one line that makes sense, and leave nothing where they could have swapped to."""
    for name, pattern in SANE.items():
        with tempfile.TemporaryDirectory() as temp:
            output = run(folder / name, cwd=temp, env={**os.environ, "TMPDIR": temp})
            assert re.match(pattern, output) and output.count("\n") == 1, output
            assert not os.listdir(temp), f"{name} left {os.listdir(temp)}"
        print(output, end="")


def built_with_cmake(prefix):
    return prefix.parent / "examples-cmake"


def cmake(build, prefix):
    sources = prefix.parent / "examples-sources"
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(ROOT / "examples", sources, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    out = built_with_cmake(prefix)
    shutil.rmtree(out, ignore_errors=True)
    run("cmake", "-S", sources, "-B", out, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Release")
    run("cmake", "--build", out)
    run_examples(out)


def documented_lines():
    """What docs/embedding.md says to type with pkg-config."""
    text = (ROOT / "docs" / "embedding.md").read_text()
    lines = [line for line in text.splitlines() if re.match(r"(cc|c\+\+) ", line)]
    assert len(lines) == len(SANE) and all("$(pkg-config" in line for line in lines), lines
    return lines


def pkgconfig(build, prefix):
    library = lib_folder(prefix)
    environment = {**os.environ, "PKG_CONFIG_PATH": str(library / "pkgconfig"), "LD_LIBRARY_PATH": str(library)}
    with tempfile.TemporaryDirectory() as temp:
        out = pathlib.Path(temp)
        shutil.copytree(ROOT / "examples", out / "examples")
        for line in documented_lines():
            run("sh", "-ec", line, cwd=out, env=environment)
        os.environ["LD_LIBRARY_PATH"] = str(library)
        run_examples(out)


def mpi(build, prefix):
    program = built_with_cmake(prefix) / "train_mpi"
    for what, missing in (("mpirun (Debian's openmpi-bin)", not shutil.which("mpirun")), (program, not program.exists())):
        if missing:
            print(f"skipped: there is no {what}; the example needs an MPI (Debian's libopenmpi-dev) when it is built")
            sys.exit(77)
    # Open MPI's own conditions for root, for fewer cores than ranks, and for containers.
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    for ranks in (2, 3):
        lines = set()
        for stage in range(4):
            command = ("mpirun", "-n", str(ranks), program, "--stage", str(stage))
            lines.add(run(*command, env={**os.environ, **allowed, "OMPI_MCA_hwloc_base_binding_policy": "none"}, timeout=60))
        assert len(lines) == 1, lines
        line = lines.pop()
        assert re.match(rf"train_mpi: {ranks} ranks, 40 steps, loss \d+\.\d+ -> 0\.0\d+, masters [0-9a-f]{{16}}\n$", line), line
        print(line, end="")


def memcheck(build, prefix):
    with tempfile.TemporaryDirectory() as temp:
        print(
            run(
                *("valgrind", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect"),
                *("--show-leak-kinds=definite,indirect", "--fair-sched=yes"),
                # valgrind 3.19 lets no other thread run while one waits for io_uring
                *(built_with_cmake(prefix) / "embed_c", "threads"),
                env={**os.environ, "TMPDIR": temp},
            )
        )


TESTS = {f.__name__: f for f in (install, headers, exports, cmake, pkgconfig, mpi, memcheck)}
TESTS[sys.argv[3]](pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
