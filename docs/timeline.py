"""Draws the trace of a build (``ocibuild build --trace FILE``) as an SVG: python docs/timeline.py FILE > timeline.svg"""

import html
import json
import sys

WIDTH, ROW, LEFT = 900, 26, 12
COLOURS = {"vertex": "#c9d8ea", "cached": "#e4e4e4", "run": "#3d7ab8", "commit": "#e09f3e"}


def main() -> None:
    """Lanes from top to bottom, time from left to right."""
    with open(sys.argv[1], encoding="utf-8") as file:
        spans = [e for e in json.load(file)["traceEvents"] if e["ph"] == "X"]
    start = min(e["ts"] for e in spans)
    scale = (WIDTH - 2 * LEFT) / max(e["ts"] + e["dur"] - start for e in spans)
    lanes = max(e["tid"] for e in spans)
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{lanes * 2 * ROW + 40}" font-family="sans-serif" font-size="11">')
    for e in spans:
        x, y = LEFT + (e["ts"] - start) * scale, (e["tid"] - 1) * 2 * ROW + 10
        width = max(e["dur"] * scale, 1)
        vertex = e["cat"] in ("vertex", "cached")
        print(f'<rect x="{x:.1f}" y="{y if vertex else y + ROW - 4}" width="{width:.1f}" height="{ROW - 4 if vertex else 12}" fill="{COLOURS[e["cat"]]}"/>')
        if vertex:
            print(f'<text x="{x + 3:.1f}" y="{y + 15}">{html.escape(e["name"][: max(int(width / 6), 4)])}</text>')
    total = max(e["ts"] + e["dur"] - start for e in spans) / 1e6
    print(f'<text x="{LEFT}" y="{lanes * 2 * ROW + 30}">blue: the command runs; orange: its layer is diffed, hashed, compressed, synced. {total:.1f} s in all</text>')
    print("</svg>")


main()
