"""The tables of docs/config.md, made from config_keys.py.

python -m sluice.deepspeed.config_table docs/config.md    writes them anew, between the two marks; prose stays
"""

import sys

from ..settings.keys import NO_EFFECT, USED
from .config_keys import ALIASES, KEYS

BEGIN, END = "<!-- made by sluice.deepspeed.config_table -->", "<!-- end -->"
_NUMBERS = {"number": "number", "count": "whole number", "positive": "whole number from 1", "size": "size"}
_OTHER = {"bool": "true, false", "text": "string", "section": "object", "betas": "two numbers"}
_OTHER |= {"path": "file", "paths": "directory"}


def _values(key):
    if isinstance(key.type, tuple):
        return ", ".join(map(str, key.type))
    words = {**_NUMBERS, **_OTHER}[key.type]
    return words if key.high is None else f"{words} to {_power(key.high)}"


def _power(number):
    """2^31-1 rather than ten digits."""
    for more, rest in ((0, ""), (1, "-1")):
        power = (number + more).bit_length() - 1
        if number >= 1 << 20 and number + more == 1 << power:
            return f"2^{power}{rest}"
    return str(number)


def _row(name, key):
    if key.kind == USED:
        default = "" if key.default is None else f"`{str(key.default).lower()}`"
        return f"| `{name}` | {_values(key)} | {default} | {key.words} |"
    if key.kind == NO_EFFECT:
        return f"| `{name}` | | | no effect: {key.words} |"
    return f"| `{name}` | | | **refused**: {key.words} |"


def _section(path, keys):
    lines = [f"### {path or 'Top level'}", "", "| key | values | default | here |", "|---|---|---|---|"]
    below = []
    for name, key in keys.items():
        if isinstance(key, dict):
            inner = f"{path}.{name}" if path else name
            lines.append(f"| `{name}` | object | | see [{inner}](#{inner.replace('.', '')}) |")
            below += ["", *_section(inner, key)]
        else:
            lines.append(_row(name, key))
    aliases = ALIASES.get(path, {})
    if aliases:
        lines += ["", "Other names: " + ", ".join(f"`{other}` for `{key}`" for other, key in aliases.items()) + "."]
    return lines + below


def tables():
    """All tables, as Markdown."""
    return "\n".join([BEGIN, "", *_section("", KEYS), "", END])


def renewed(text):
    """`text` with the tables between its marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the text lacks the marks {BEGIN} and {END}")
    return before + tables() + after


def main():
    path = sys.argv[1]
    with open(path, encoding="utf-8") as file:
        text = renewed(file.read())
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
