"""Comments and literals that were cut in the middle, as a formatter leaves them, in tracked C++ files.

A piece of a literal, or a line of a sentence, ends early though the next word would fit; a word stands alone on a line
amid a sentence; a comment's end stands alone on a line where it would fit on the one before; a comment follows the brace
of a body that it made too long for its line.
"""

import re

from tracked import ROOT, finish, tracked

COLUMNS = 100
_LITERAL = re.compile(r'\s*"((?:[^"\\]|\\.)+)"')
_COMMENT = re.compile(r"(\s*(?://|\*|/\*)) (\S.*)$")
_WORD = re.compile(r"\s*(?://|\*) \S+$")


def literal_is_cut(line, following):
    piece = _LITERAL.match(following)
    if not piece or not re.search(r'[^\\]"$', line) or line.endswith('\\n"') or line.strip().startswith("//"):
        return False
    word = piece.group(1).split(" ")[0] + (" " if " " in piece.group(1) else "")
    return len(line) + len(word) <= COLUMNS - 3  # what ends the statement may need room


def sentence_is_cut(line, following):
    here, there = _COMMENT.match(line), _COMMENT.match(following)
    if not here or not there or len(line) >= COLUMNS - 12:
        return False
    amid = not re.search(r"[.:;!?)`>,\]]$|\*/$", line) and re.match(r"[a-z(`]", there.group(2))
    return bool(amid) and len(line) + 1 + len(there.group(2).split()[0]) <= COLUMNS


def problems_of(name, text):
    lines = text.split("\n")
    for number, (line, following) in enumerate(zip(lines, lines[1:]), start=1):
        if literal_is_cut(line, following):
            yield f"{name}:{number}: the literal goes on though the next word would fit here"
        if sentence_is_cut(line, following):
            yield f"{name}:{number}: the comment goes on though the next word would fit here"
        if re.match(r"\s*\*/$", following) and len(line.rstrip("\\ ")) + 3 <= COLUMNS:
            yield f"{name}:{number + 1}: the comment's end would fit on the line before"
        if re.match(r"\s*\*\s*-{5,}$", following):
            yield f"{name}:{number + 1}: a rule that was cut off its heading"
        if re.match(r"\s*\}  // (?!namespace|extern)", line) and re.search(r"\{$", lines[number - 3]):
            yield f"{name}:{number}: a comment that made a body too long for its line: put it above"
    for number, (line, word, following) in enumerate(zip(lines, lines[1:], lines[2:]), start=2):
        goes_on = _COMMENT.match(following) and _COMMENT.match(line) and not re.search(r"[.:;]$", line)
        if _WORD.match(word) and goes_on and not re.search(r"[.:]$", word):
            yield f"{name}:{number}: a word alone on its line amid a sentence"


def self_test():
    """The check finds what it should, and nothing else."""
    for bad in (
        'f("a budget of units "\n  "smaller, or delete what is held")',
        "// tries io_uring, then libaio where\n// every file is direct",
        "/* Ends here.\n */",
        "/* ---- The model\n * ----------\n */",
        "  int a() const {\n    return a_;\n  }  // bytes\n",
        "// " + "x" * 95 + "\n// operand\n// and goes on",
    ):
        assert list(problems_of("a.h", bad)), bad
    for good in (
        'f("a line\\n"\n  "another")',
        "// A sentence.\n// Another.",
        "/* Ends here. */",
        "// " + "word " * 19 + "\n// and goes on",
        "}  // namespace sluice",
    ):
        assert not list(problems_of("a.h", good)), list(problems_of("a.h", good))


def main():
    self_test()
    files = tracked(".h", ".hpp", ".c", ".cc", ".cu")
    finish([p for name in files for p in problems_of(name, (ROOT / name).read_text())], len(files))


main()
