"""pages.py: writes what Sphinx builds the site from into build/docs/source. tools/docs runs it.

The folder has the shape of the repository. The Markdown files are there as they are, README.md as the entry page; files and folders
that they link to, and all headers, become pages that show them; the reference comes from Doxygen's XML. Prints what is wrong with the
pages, one a line.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "docs/site")]
import markdown  # noqa: E402
import reference  # noqa: E402

OUT = ROOT / "build/docs"
SOURCE = OUT / "source"
LANGUAGES = {
    **{suffix: "cpp" for suffix in (".hpp", ".cpp", ".cuh", ".cu", ".inc")},
    **{".cmake": "cmake", ".json": "json", ".py": "python", ".md": "markdown", ".sh": "bash"},
}
IMAGES = (".png", ".svg", ".jpg")
LARGEST = 200_000  # bytes of a file that is shown


def repository_files():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    return sorted(name for name in names if name and (ROOT / name).is_file())


def language(name):
    path = ROOT / name
    if path.suffix in LANGUAGES:
        return LANGUAGES[path.suffix]
    if path.name == "CMakeLists.txt":
        return "cmake"
    with open(path, "rb") as file:
        first = file.readline()
    return "python" if b"python" in first else "bash" if first.startswith(b"#!") else "text"


def is_text(name):
    path = ROOT / name
    if path.stat().st_size > LARGEST or path.suffix in IMAGES:
        return False
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def write(name, text):
    path = SOURCE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


class Site:
    def __init__(self):
        self.files = repository_files()
        self.folders = {parent.as_posix() for name in self.files for parent in PurePosixPath(name).parents} - {"."}
        self.pages = {name: "index.md" if name == "README.md" else name for name in self.files if name.endswith(".md")}
        # Not for readers: the site's own table of contents, and the forms that a forge fills in.
        self.pages = {name: page for name, page in self.pages.items() if not name.startswith(("docs/site/", ".github/"))}
        self.shown_files = {name for name in self.files if name.startswith("include/")}
        self.shown_folders = {"include/xquant", "examples"}
        self.complaints = []

    def target(self, page, link):
        """Where a page's link goes on the site."""
        path, hash_sign, anchor = link.partition("#")
        if not path or re.match(r"[a-z][a-z0-9+.-]*:", link):
            return link
        there = (ROOT / page).parent.joinpath(path).resolve()
        if not there.is_relative_to(ROOT):
            return link  # tools/check-links says what is wrong
        name = there.relative_to(ROOT).as_posix()
        up = "../" * len(PurePosixPath(page).parent.parts)
        if name in self.pages:
            return f"{up}{self.pages[name]}{hash_sign}{anchor}"
        if name in self.folders:
            self.shown_folders.add(name)
            return f"{up}{name}/index.md"
        if name in self.files and name.endswith(IMAGES):
            return f"{up}{name}"
        if name in self.files and is_text(name):
            self.shown_files.add(name)
            return f"{up}{name}.md"
        return link

    def write_markdown(self, navigation):
        for name, page in self.pages.items():
            text, done, out = (ROOT / name).read_text(encoding="utf-8"), 0, ""
            for begin, end in sorted(markdown.links(text)):
                out += text[done:begin] + self.target(name, text[begin:end])
                done = end
            out += text[done:]
            out = re.sub(r"(?m)^```(cpp|sh)$", lambda match: {"cpp": "```cpp", "sh": "```bash"}[match[0][3:]], out)
            write(page, out + "\n" + navigation if name == "README.md" else self.front_matter(name) + out)

    def front_matter(self, name):
        return "" if name in self.listed else "---\norphan: true\n---\n\n"

    def write_folders(self):
        """A page for each folder that is linked to, and for the folders and files in it."""
        self.shown_folders = {name for name in self.folders for shown in self.shown_folders if f"{name}/".startswith(f"{shown}/")}
        for folder in sorted(self.shown_folders):
            inside = [name for name in self.files if name.startswith(folder + "/")]
            folders = sorted({name[len(folder) + 1 :].split("/")[0] for name in inside if "/" in name[len(folder) + 1 :]})
            text = f"---\norphan: true\nnosearch: true\n---\n\n# {folder}/\n\n"
            if folder == "examples":
                text = "# Examples\n\nPrograms that use the library, the first ones in the order in which to read them.\n\n"
            for name in inside:
                if name in self.pages and name == f"{folder}/README.md":
                    text += "[README.md](README.md) says what is here.\n\n"
            rows = [f"| [{one}/]({one}/index.md) | |" for one in folders]
            for name in inside:
                short = name[len(folder) + 1 :]
                if "/" in short or short == "README.md":
                    continue
                if name in self.pages:
                    rows.append(f"| [{short}]({short}) | |")
                elif is_text(name):
                    self.shown_files.add(name)
                    rows.append(f"| [{short}]({short}.md) | {self.summary(name)} |")
                else:
                    rows.append(f"| {short} | |")
            write(f"{folder}/index.md", text + "| file | what it is |\n|---|---|\n" + "\n".join(rows) + "\n")

    def summary(self, name):
        """The first sentence of a source file's comment."""
        if language(name) != "cpp":
            return ""
        lines = []
        for line in reference.head_comment((ROOT / name).read_text(encoding="utf-8")):
            if not line.strip() or line.startswith("    "):
                break
            lines.append(line.strip())
        first = re.match(r".*?\.(?= |$)|.*", " ".join(lines))[0]
        return re.sub(r"([\\<>*_|\[\]])", r"\\\1", first)

    def write_files(self):
        for name in sorted(self.shown_files):
            up = "../" * len(PurePosixPath(name).parent.parts)
            file = f"{up}../../../{name}"
            options = f":language: {language(name)}\n:linenos:\n"
            title = f"---\norphan: true\nnosearch: true\n---\n\n# {PurePosixPath(name).name}\n\n"
            write(f"{name}.md", f"{title}{self.way(name)}\n\n```{{literalinclude}} {file}\n{options}```\n")

    def way(self, name):
        """The folders that a file lies in, as links where they have pages."""
        parts = PurePosixPath(name).parts
        out = []
        for i, part in enumerate(parts[:-1]):
            way = "../" * (len(parts) - 2 - i)
            out.append(f"[{part}]({way}index.md)" if "/".join(parts[: i + 1]) in self.shown_folders else part)
        return " / ".join([*out, parts[-1]])

    def write(self):
        shutil.rmtree(SOURCE, ignore_errors=True)
        SOURCE.mkdir(parents=True)
        names, complaints = reference.write_pages(ROOT, OUT / "xml", SOURCE / "reference")
        self.complaints += complaints
        navigation = (ROOT / "docs/site/navigation.md").read_text(encoding="utf-8")
        self.listed = {f"{name}.md" for name in re.findall(r"^([\w/.-]+)$", navigation, re.M)}
        rest = sorted(name for name in self.pages if name not in self.listed and name != "README.md" and "/text/" not in name)
        self.listed.update(rest)
        navigation = navigation.replace("REFERENCE\n", "".join(f"reference/{name}\n" for name in names))
        navigation = navigation.replace("REST\n", "".join(f"{name.removesuffix('.md')}\n" for name in rest))
        self.write_markdown(navigation)
        self.write_folders()
        self.write_files()
        for name in self.files:
            if name.endswith(IMAGES):
                (SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, SOURCE / name)
        shutil.copy(ROOT / "docs/site/conf.py", SOURCE / "conf.py")
        shutil.copytree(ROOT / "docs/site/static", SOURCE / "static")


def main():
    if sys.argv[1:] == ["headers"]:
        shutil.rmtree(OUT / "headers", ignore_errors=True)
        reference.copy_headers(ROOT / "include", OUT / "headers")
        return 0
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    site = Site()
    site.write()
    for complaint in site.complaints:
        print(complaint)
    return 0


sys.exit(main())
