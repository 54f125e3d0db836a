"""Markdown as the repository's scripts need it: code blocks, links, headings and their anchors. To be imported."""

import re
from dataclasses import dataclass

FENCE = re.compile(r"^( *)(`{3,}|~{3,})\s*([\w+-]*)\s*$")
LINK = re.compile(r"""(?<!\\)\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?(?P<inline>[^)\s<>]+)>?(?:\s+"[^"]*")?\s*\)""")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(?P<definition>[^\s<>]+)>?", re.M)
ATTRIBUTE = re.compile(r"""\b(?:href|src)\s*=\s*"(?P<attribute>[^"]+)\"""")


@dataclass
class Block:
    """A fenced code block: its language, its text, and the lines of the page where fence and text begin, counted from 1."""

    language: str
    text: str
    fence_line: int
    text_line: int


def code_blocks(text):
    lines, blocks, i = text.split("\n"), [], 0
    while i < len(lines):
        fence = FENCE.match(lines[i])
        if not fence:
            i += 1
            continue
        begin, indent = i + 1, len(fence[1])
        i = begin
        while i < len(lines) and not re.fullmatch(rf" *{fence[2][0]}{{{len(fence[2])},}}\s*", lines[i]):
            i += 1
        body = [line[indent:] if not line[:indent].strip() else line for line in lines[begin:i]]
        blocks.append(Block(fence[3], "\n".join(body) + "\n", begin, begin + 1))
        i += 1
    return blocks


def without_code(text):
    """The text with code blocks, code spans and comments blanked out; every place in it stays where it was."""

    def blank(part):
        return re.sub(r"[^\n]", " ", part)

    lines = text.split("\n")
    for block in code_blocks(text):
        for i in range(block.fence_line - 1, min(len(lines), block.text_line + block.text.count("\n"))):
            lines[i] = " " * len(lines[i])
    text = re.sub(r"<!--.*?-->", lambda match: blank(match[0]), "\n".join(lines), flags=re.S)
    # A span's text goes, its quotes stay: it may be a part of a link's text.
    span = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", re.S)
    return span.sub(lambda match: match[1] + blank(match[2]) + match[1], text)


def links(text):
    """(begin, end) of every link's target in the text: inline links, images, definitions, HTML."""
    plain = without_code(text)
    for pattern in (LINK, DEFINITION, ATTRIBUTE):
        for match in pattern.finditer(plain):
            yield match.span(match.lastgroup)


def headings(text):
    """(line, title) of every heading that begins with #."""
    fenced = {
        line for block in code_blocks(text) for line in range(block.fence_line, block.text_line + block.text.count("\n") + 1)
    }
    for number, line in enumerate(text.split("\n"), 1):
        match = re.match(r" {0,3}#{1,6}\s+(.*?)\s*#*\s*$", line)
        if match and number not in fenced:
            yield number, match[1]


def anchors(text):
    """The anchors that forges give to a page's headings, and those that its HTML names."""
    found = set()
    for _, title in headings(text):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        unique, count = slug, 0
        while unique in found:
            count += 1
            unique = f"{slug}-{count}"
        found.add(unique)
    return found | set(re.findall(r"""<a\s[^>]*\b(?:id|name)\s*=\s*"([^"]+)\"""", text))
