"""The flags of `sluice launch`: each alone and in pairs, in every spelling, and what is said of those that aren't taken."""

import itertools

import pytest

from sluice.launch.flags import FLAGS, LAUNCHERS, REFUSED, REFUSED_LAUNCHERS, LaunchError, help_text, parse

VALUES = {  # a value for each flag that takes one: as written, as understood
    "num_gpus": ("8", 8),
    "num_nodes": ("2", 2),
    "include": ("host:0,1@host2:2", "host:0,1@host2:2"),
    "exclude": ("host:0", "host:0"),
    "hostfile": ("hosts", "hosts"),
    "master_addr": ("10.0.0.1", "10.0.0.1"),
    "master_port": ("29501", 29501),
    "node_rank": ("0", 0),
    "launcher": ("none", "none"),
    "bind_core_list": ("0-3,8", "0-3,8"),
    "python": ("/opt/python", "/opt/python"),
}
APART = [{"include", "exclude"}, {"module", "no_python"}]
APART += [{one, other} for one in ("include", "exclude") for other in ("num_gpus", "num_nodes")]
SCRIPT = ["train.py", "--num_gpus", "4", "-i", "--", "--module=x", "--help", "a b", ""]


def spellings(flag, name):
    """[words, ...] that mean this flag by this name."""
    names = {name, "--" + name[2:].replace("_", "-")} if name.startswith("--") else {name}
    if flag.value is None:
        return [[one] for one in sorted(names)]
    written = VALUES[flag.key][0]
    return [words for one in sorted(names) for words in ([one, written], [f"{one}={written}"])]


def meaning(flag):
    return True if flag.value is None else VALUES[flag.key][1]


def test_a_script_alone():
    options = parse(SCRIPT)
    assert (options.flags, options.script, list(options.arguments)) == ({}, SCRIPT[0], SCRIPT[1:])
    assert parse(["--", *SCRIPT]) == options
    assert parse(["--", "-x.py", "--", "y"]).arguments == ("--", "y")


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.key)
def test_each_flag_alone(flag):
    for name in flag.names:
        for words in spellings(flag, name):
            options = parse([*words, *SCRIPT])
            assert options.flags == {flag.key: meaning(flag)}, words
            assert [options.script, *options.arguments] == SCRIPT
    assert all(name in help_text() for name in flag.names)


@pytest.mark.parametrize("one, other", list(itertools.permutations(FLAGS, 2)), ids=lambda flag: flag.key)
def test_pairs_of_flags(one, other):
    for first, second in itertools.product(spellings(one, one.names[0]), spellings(other, other.names[0])):
        words = [*first, *second, *SCRIPT]
        if {one.key, other.key} in APART:
            with pytest.raises(LaunchError, match=f"--{one.key}.*--{other.key}|--{other.key}.*--{one.key}"):
                parse(words)
        else:
            assert parse(words).flags == {one.key: meaning(one), other.key: meaning(other)}


def test_all_flags_together_and_the_last_wins():
    for without in itertools.product(("include", "exclude", "num_gpus"), ("module", "no_python")):
        left_out = {"include", "exclude", "num_gpus"} - {without[0]} | {without[1]}
        left_out |= {"num_nodes"} if without[0] != "num_gpus" else set()
        flags = [flag for flag in FLAGS if flag.key not in left_out]
        words = [word for flag in flags for word in spellings(flag, flag.names[0])[-1]]
        assert parse([*words, *SCRIPT]).flags == {flag.key: meaning(flag) for flag in flags}
    assert parse(["--num_gpus", "2", "--num_gpus=3", "x"]).flags == {"num_gpus": 3}
    assert parse(["--include=", "--num_gpus", "2", "x"]).flags == {"num_gpus": 2}  # a shell's empty variable


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.low is not None], ids=lambda flag: flag.key)
def test_numbers_are_checked(flag):
    wrong = ["-1", "1.5", "x", "0x2", "1" * 10, "", *([] if flag.low == 0 else ["0"]), *(["65536"] if flag.high else [])]
    for value in wrong:
        with pytest.raises(LaunchError, match=f"--{flag.key}: must be a whole number from {flag.low}"):
            parse([f"--{flag.key}={value}", "train.py"])
    for value in {flag.low, flag.high or 64}:
        assert parse([f"--{flag.key}", str(value), "train.py"]).flags == {flag.key: value}


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.key)
def test_values_are_there_where_they_belong(flag):
    name = flag.names[0]
    if flag.value is None:
        with pytest.raises(LaunchError, match=f"{name} takes no value"):
            parse([f"{name}=1", "train.py"])
        return
    for rest in ([], ["--module", "train.py"]):
        with pytest.raises(LaunchError, match=f"{name} needs a value"):
            parse([name, *rest])


def test_a_script_must_be_named():
    for words in ([], ["--module"], ["--num_gpus", "2"], ["--num_gpus=2", "--"]):
        with pytest.raises(LaunchError, match="no script was named"):
            parse(words)
    for words in (["--help"], ["-h"], ["--num_gpus", "2", "--help", "x"]):
        assert parse(words).script is None


@pytest.mark.parametrize("name", REFUSED)
def test_flags_of_others_say_what_to_use(name):
    for words in ([name], [name, "1"], [f"{name}=1"], ["--module", name], [name.replace("_", "-")]):
        with pytest.raises(LaunchError) as error:
            parse([*words, "train.py"])
        assert error.value.code == 2 and str(error.value) == f"{name} is not a flag of this launcher: {REFUSED[name][1]}"
    assert name not in {known for flag in FLAGS for known in flag.names}


@pytest.mark.parametrize("which", [*REFUSED_LAUNCHERS, "PDSH", "ray"])
def test_launchers_of_others_say_what_to_use(which):
    with pytest.raises(LaunchError, match="--launcher") as error:
        parse(["--launcher", which, "train.py"])
    advice = {"pdsh": "ssh", "slurm": "srun", "jsrun": "jsrun", "ray": "`none` or `ssh`"}.get(which.lower(), "mpirun")
    assert advice in str(error.value)
    assert all(parse(["--launcher", one, "train.py"]).flags["launcher"] == one for one in LAUNCHERS)


def test_ssh_starts_every_host():
    for other in (["--node_rank", "0"], ["--no_ssh"]):
        with pytest.raises(LaunchError, match="--launcher ssh"):
            parse(["--launcher=ssh", *other, "train.py"])


NEAR = [("--num_gpu", "--num_gpus"), ("--hostfiles", "--hostfile"), ("--xyzzy", None), ("-z", None), ("--set_threads", None)]


@pytest.mark.parametrize("word, near", NEAR)
def test_unknown_flags_are_errors(word, near):
    advice = f"did you mean {near}" if near else "`sluice launch --help`"
    with pytest.raises(LaunchError, match=f"unknown flag {word}; {advice}"):
        parse([word, "train.py"])
