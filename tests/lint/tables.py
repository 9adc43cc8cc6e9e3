"""Tables of the Markdown pages: a head, a line of dashes, and rows of as many columns; nothing between that cuts one off."""

import re

from tracked import ROOT, finish, tracked

_DASHES = re.compile(r"^\|(\s*:?-+:?\s*\|)+$")


def columns(line):
    """How many cells a row has. A bar behind a backslash is text; one in code is not, until it has one too."""
    return line.strip().replace("\\|", "").count("|") - 1


def problems_of(name, text):
    in_code, table = False, None  # columns of the table that the line before was in
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        if in_code or not line.startswith("|"):
            if not in_code and re.match(r"^\s+\|", line):
                yield f"{name}:{number}: an indented row is no row"
            table = None
            continue
        if not line.rstrip().endswith("|"):
            yield f"{name}:{number}: a row ends without |"
        if table is None:
            table = columns(line)
            after = lines[number] if number < len(lines) else ""
            if not _DASHES.match(after.rstrip()):
                yield f"{name}:{number}: a row that belongs to no table: a head is followed by a line of dashes"
            if number > 1 and lines[number - 2].strip() and not lines[number - 2].startswith(("#", "<!--")):
                yield from before(name, number, lines[number - 2])
        elif columns(line) != table:
            yield f"{name}:{number}: {columns(line)} columns in a table of {table}"


def before(name, number, line):
    """A list's line would swallow the table."""
    if re.match(r"^\s*([-*]|[0-9]+\.) ", line):
        yield f"{name}:{number}: a table needs an empty line after a list"


def self_test():
    """The check finds what it should, and nothing else."""
    good = "| a | b |\n|---|---|\n| 1 | `x` |\n| 2 | x \\| y |\n\n```\n| no table\n```\n"
    assert not list(problems_of("a", good)), list(problems_of("a", good))
    bad = [
        good.replace("| 1 |", "| 1 | 2 |"),
        good.replace("| 2 |", "\n| 2 |"),
        good.replace("|---|---|", "|---|"),
        good.replace("|---|---|\n", ""),
        good.replace("| 1 | `x` |", "| 1 | `x`"),
        good.replace("| 1 | `x` |", "| 1 | `x|y` |"),
        "- list\n" + good,
    ]
    for text in bad:
        assert list(problems_of("a", text)), text


def main():
    self_test()
    files = tracked(".md")
    problems = [p for name in files for p in problems_of(name, (ROOT / name).read_text(encoding="utf-8"))]
    finish(problems, len(files))


main()
