#!/usr/bin/env python3
"""check_quickstart.py PROGRAM: README.md has the output of examples/01_quickstart.cpp to the letter.

PROGRAM is what the build made of that file. The output is the first code block behind README.md's first link to it.
"""

import difflib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "examples/01_quickstart.cpp"
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools"))
import markdown  # noqa: E402


def difference(expected, found, expected_name, found_name):
    """A complaint, or nothing."""
    lines = difflib.unified_diff(expected.splitlines(True), found.splitlines(True), expected_name, found_name)
    return "".join(lines) or ("" if expected == found else f"{found_name}: other line ends than {expected_name}\n")


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("--help", "-h"):
        print(__doc__, end="")
        return 0 if len(sys.argv) == 2 else 2
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if f"]({EXAMPLE})" not in readme:
        print(f"README.md: there is no link to {EXAMPLE}")
        return 1
    link_line = readme[: readme.index(f"]({EXAMPLE})")].count("\n") + 1
    outputs = [block for block in markdown.code_blocks(readme) if block.text_line > link_line]
    if not outputs:
        print(f"README.md:{link_line}: there is no code block with the output behind the link to {EXAMPLE}")
        return 1
    printed = subprocess.run([sys.argv[1]], check=True, capture_output=True, text=True).stdout
    complaints = difference(outputs[0].text, printed, f"README.md:{outputs[0].text_line}", f"what {EXAMPLE} prints")
    print(complaints or f"README.md:{outputs[0].text_line} is what {EXAMPLE} prints")
    return 1 if complaints else 0


sys.exit(main())
