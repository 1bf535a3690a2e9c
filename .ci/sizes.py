"""Files under 500 lines, functions under 60: what can be read in one sitting."""

import ast
import pathlib
import sys

MAX_FILE, MAX_FUNCTION = 500, 60


def main() -> int:
    """Print each offender; exit 1 when there is one."""
    bad = []
    for top in ("ocibuildd", "cli"):
        for path in sorted(pathlib.Path(top).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            lines = text.count("\n")
            if lines > MAX_FILE:
                bad.append(f"{path}: {lines} lines, at most {MAX_FILE}")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    size = (node.end_lineno or node.lineno) - node.lineno + 1
                    if size > MAX_FUNCTION:
                        bad.append(
                            f"{path}:{node.lineno}: {node.name}: {size} lines, at most {MAX_FUNCTION}"
                        )
    print("\n".join(bad) or "sizes: good")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
