"""A wheel of this checkout, built and then used where there is no compiler and none of what it links: wheel.py FOLDER.

The build needs only what scripts/requirements.txt pins. The environment that it is installed into is fresh, but borrows
torch from .venv.
"""

import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
# What every Linux with a Python and torch has.
SYSTEM = {"linux-vdso.so.1", "libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
USE = """
import pathlib, sys, torch, sluice
assert pathlib.Path(sluice.__file__).is_relative_to(sys.prefix), sluice.__file__
config = {"train_batch_size": 4, "optimizer": {"type": "AdamW", "params": {"lr": 0.01}}, "sluice": {"hbm": "1MiB"}}
torch.manual_seed(0)
engine, *_ = sluice.initialize(model=torch.nn.Linear(16, 4), config=config)
inputs, targets = torch.randn(4, 16), torch.randn(4, 4)
losses = []
for _ in range(5):
    loss = torch.nn.functional.mse_loss(engine(inputs.to(engine.device)), targets.to(engine.device))
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
engine.close()
assert losses[-1] < losses[0], losses
print(f"sluice {sluice.version()} from a wheel: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
"""


def run(*command, **options):
    command = [str(c) for c in command]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {result.returncode}\n{result.stdout}")
    return result.stdout


def build(folder):
    has_backend = subprocess.run([PYTHON, "-c", "import scikit_build_core"], capture_output=True).returncode == 0
    if not has_backend:
        sys.exit("scikit-build-core is not in .venv: run scripts/setup, which installs scripts/requirements.txt")
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, ROOT)
    (wheel,) = folder.glob("sluice-*.whl")
    return pip, wheel


def check_needs(program, environment):
    """Everything that `program` loads comes from the wheel, but for what every system has."""
    for line in run("ldd", program).splitlines():
        name, _, path = line.strip().partition(" => ")
        own = path.startswith(str(environment))
        assert own or pathlib.Path(name.split()[0]).name in SYSTEM, f"{program.name} needs {line.strip()}"


def check_licences(package, licences):
    """Every library in the wheel, and what is compiled in, has a licence, and what that refers to is there too; but for
    texts that this machine lacks."""
    lines = [line.split(" (")[0].split(": ", 1) for line in licences["INDEX.txt"].splitlines()[2:]]
    missing = [words.removesuffix(" does not exist") for what, words in lines if what == "MISSING"]
    assert not any(pathlib.Path(path).exists() for path in missing), missing
    if missing:
        print(f"not looked at, as licences are missing here: {missing}")
        return
    carried, texts = {what for what, _ in lines}, {text for _, text in lines}
    lacking = {f"libs/{library.name}" for library in (package / "libs").iterdir()} - carried
    assert not lacking and len(carried) > 2, lacking
    assert {"nlohmann-json3-dev.txt", "libcli11-dev.txt"} <= texts, texts
    for name in texts:
        assert re.search("licen[sc]e", licences[name], re.IGNORECASE), name
    for text in licences.values():
        lacking = {f"{name}.txt" for name in re.findall(r"common-licenses/([\w.-]*\w)", text)} - licences.keys()
        assert not lacking, lacking


def check_missing(folder):
    """Without a licence there is no wheel, or, where none is required, a list of what is missing."""
    missing = "/usr/share/doc/of-nobody/copyright does not exist"
    for required in ("ON", "OFF"):
        options = [f"-DLICENCES={folder}", "-DCOMPILED=of-nobody", "-DCARRIED=/no/lib.so", f"-DREQUIRED={required}"]
        command = ["cmake", *options, "-P", ROOT / "cmake" / "licences.cmake"]
        result = subprocess.run(command, capture_output=True, text=True)
        words = " ".join(result.stderr.split())
        assert (result.returncode != 0) == (required == "ON"), result
        assert "no Debian package has /no/lib.so" in words, words
    assert missing in words and f"MISSING: {missing}" in (folder / "INDEX.txt").read_text()


def main():
    folder = pathlib.Path(sys.argv[1]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip, wheel = build(folder)
    environment = folder / "environment"
    run(PYTHON, "-m", "venv", "--without-pip", environment)
    run(*pip, "--python", environment / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (packages,) = glob.glob(str(environment / "lib" / "python*" / "site-packages"))
    purelib = run(PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    pathlib.Path(packages, "borrowed.pth").write_text(purelib)

    package = pathlib.Path(packages, "sluice")
    check_needs(package / "libsluice.so", environment)
    check_needs(package / "bin" / "sluice", environment)
    (texts,) = pathlib.Path(packages).glob("sluice-*.dist-info/licenses/third-party")
    check_licences(package, {text.name: text.read_text() for text in texts.iterdir()})
    check_missing(folder / "missing")
    bare = {"PATH": str(environment / "bin"), "HOME": str(folder), "LC_ALL": "C.UTF-8"}  # no compiler
    print(run(environment / "bin" / "sluice", "--version", env=bare, cwd=folder), end="")
    print(run(environment / "bin" / "python", "-c", USE, env=bare, cwd=folder), end="")


main()
