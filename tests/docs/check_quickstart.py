#!/usr/bin/env python3
"""check_quickstart.py PROGRAM: README.md's program is examples/01_quickstart.cpp to the letter, and prints what README.md says.

PROGRAM is what the build made of that file. The output is the code block behind the program in README.md.
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
    blocks = markdown.code_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    places = [i for i, block in enumerate(blocks) if block.language == "cpp"]
    if not places or places[0] + 1 >= len(blocks):
        print("README.md: there is no program, or no code block with its output behind it")
        return 1
    program, output = blocks[places[0]], blocks[places[0] + 1]
    printed = subprocess.run([sys.argv[1]], check=True, capture_output=True, text=True).stdout
    complaints = difference(program.text, (ROOT / EXAMPLE).read_text(encoding="utf-8"), f"README.md:{program.text_line}", EXAMPLE)
    complaints += difference(output.text, printed, f"README.md:{output.text_line}", f"what {EXAMPLE} prints")
    print(complaints or f"README.md:{program.text_line} is {EXAMPLE}, and prints README.md:{output.text_line}")
    return 1 if complaints else 0


sys.exit(main())
