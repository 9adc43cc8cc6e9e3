"""The tables of docs/scale.md and its plot, from the figures of `scale_sim --json`. The SVG is written by hand: no library.

    build/release/bench/scale_sim --json FILE
    python3 bench/scale_plot.py FILE docs/scale.svg
"""

import json
import sys

WIDTH, HEIGHT, MARGIN = 430, 300, 50
COLOURS = ["#1b6ca8", "#d1495b", "#2e933c", "#8d5a97", "#edae49", "#444444"]


def infinity_tflops(row):
    """TFLOPS a GPU as ZeRO-Infinity's design has it: compute, then an optimizer's step that nothing hides, with 32 bytes a
    parameter between GPU hosts and drives of 28 GB/s each."""
    flops = 8 * row["parameters"] * row["tokens"]
    optimizer = 32 * row["parameters"] / (row["hosts"] * 28e9)
    return flops / (flops / 50e12 + optimizer) / 1e12


def panel(left, title, x_title, y_title, hosts, series, low, high):
    """One plot: series are (name, {hosts: value})."""

    def x(value):
        return left + MARGIN + hosts.index(value) * (WIDTH - 1.5 * MARGIN) / max(len(hosts) - 1, 1)

    def y(value):
        return HEIGHT - MARGIN - (value - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    out = [f'<text x="{left + WIDTH / 2}" y="20" text-anchor="middle" font-weight="bold">{title}</text>']
    out.append(f'<text x="{left + WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{x_title}</text>')
    out.append(f'<text x="{left + MARGIN}" y="40" text-anchor="middle">{y_title}</text>')
    for value in hosts:
        out.append(f'<text x="{x(value):.0f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{value}</text>')
    for i in range(5):
        value = low + (high - low) * i / 4
        out.append(f'<line x1="{x(hosts[0]):.0f}" x2="{x(hosts[-1]):.0f}" y1="{y(value):.0f}" y2="{y(value):.0f}" stroke="#ddd"/>')
        out.append(f'<text x="{left + MARGIN - 8}" y="{y(value) + 4:.0f}" text-anchor="end">{value:.4g}</text>')
    for i, (name, values) in enumerate(series):
        points = " ".join(f"{x(h):.1f},{y(v):.1f}" for h, v in sorted(values.items()))
        colour = COLOURS[i % len(COLOURS)]
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{left + MARGIN + 12}" y="{58 + 14 * i}" fill="{colour}">{name}</text>')
    return out


def plot(rows):
    hosts = sorted({r["hosts"] for r in rows if r["table"] == "hosts"})
    ratios = {}
    for r in rows:
        if r["table"] == "hosts" and r["machine"] == "h100":
            ratios.setdefault(r["name"], {})[r["hosts"]] = r["ratio"]
    infinity = [r for r in rows if r["table"] == "infinity hosts"]
    of_hosts = sorted(r["hosts"] for r in infinity)
    shapes = [
        ("the schedule, simulated", {r["hosts"]: r["teraflops"] for r in infinity}),
        ("compute, then the optimizer's transfers", {r["hosts"]: infinity_tflops(r) for r in infinity}),
    ]
    body = panel(0, "Step over floor, 8 x H100 a host", "hosts", "ratio", hosts, list(ratios.items()), 1.0, 1.06)
    if infinity:  # of a run of some tables only
        body += panel(WIDTH, "1T on DGX-2, states on NVMe", "hosts", "TFLOPS a GPU", of_hosts, shapes, 0, 60)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{(2 if infinity else 1) * WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>' + "\n".join(body) + "</svg>\n"
    )


def table(header, lines):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def markdown(rows):
    def of(name):
        return [r for r in rows if r["table"] == name]

    for machine in ("h100", "a100"):
        by_name = {}
        for r in of("hosts"):
            if r["machine"] == machine:
                by_name.setdefault(r["name"], []).append(r)
        hosts = sorted({r["hosts"] for r in of("hosts")})
        cells = [[n, *(f"{r['step_seconds']:.3g} s, {r['ratio']:.3f}" for r in rs)] for n, rs in by_name.items()]
        table([machine, *(f"{h} hosts" for h in hosts)], cells)
    by_key = {}
    for r in of("collectives"):
        by_key.setdefault((r["hosts"], r["tokens"]), {})[r["stage"]] = r["exposed"]
    table(
        ["hosts", "tokens", *(f"stage {s}" for s in range(4))],
        [[str(h), f"{t:.0f}", *(f"{100 * e[s]:.1f} %" for s in range(4))] for (h, t), e in sorted(by_key.items())],
    )
    for name in ("infinity sizes", "infinity hosts"):
        table(
            ["model", "hosts", "step", "of the floor", "TFLOPS a GPU", "formula's"],
            [
                [
                    r["name"],
                    str(r["hosts"]),
                    f"{r['step_seconds']:.4g} s",
                    f"{r['ratio']:.3f}",
                    f"{r['teraflops']:.1f}",
                    f"{infinity_tflops(r):.1f}",
                ]
                for r in of(name)
            ],
        )
    table(
        ["setting", "hosts", "overlap", "step", "of the floor"],
        [
            [r["name"], str(r["hosts"]), "yes" if r["overlap"] else "no", f"{r['step_seconds']:.4g} s", f"{r['ratio']:.2f}"]
            for r in of("overlap")
        ],
    )
    full = {(r["name"], r["hosts"], r["all_simulated"]): r for r in of("full")}
    table(
        ["setting", "ranks", "one host stands for all", "all ranks", "ratio", "CPU time to simulate"],
        [
            [
                r["name"],
                str(r["ranks"]),
                f"{r['step_seconds']:.4f} s",
                f"{full[n, h, True]['step_seconds']:.4f} s",
                f"{full[n, h, True]['step_seconds'] / r['step_seconds']:.4f}",
                f"{r['simulated_in_seconds']:.1f} and {full[n, h, True]['simulated_in_seconds']:.1f} s",
            ]
            for (n, h, all_there), r in full.items()
            if not all_there and (n, h, True) in full
        ],
    )


def main():
    with open(sys.argv[1]) as file:
        rows = json.load(file)["rows"]
    markdown(rows)
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w") as file:
            file.write(plot(rows))


if __name__ == "__main__":
    main()
