"""The pages of the reference: what Doxygen's XML says of the public headers, as reStructuredText for Sphinx.

A header's own comment comes first, then everything public that it declares, in the order of the header. The comments of this library
are plain sentences, text that is indented by four spaces and stands as it is, and a few words that begin a paragraph of their own:
Throws, Cost, Error, Source. That is little enough to be read here, and leaves the order and the look of the pages to us.
"""

import re
import textwrap
import xml.etree.ElementTree as xml
from dataclasses import dataclass, field
from pathlib import Path

# The pages: file, title, what it is about, headers below include/xquant (a folder stands for all in it that no page names). Headers
# that no page names get a page of their own at the end, so nothing public is lost.
PAGES = [
    (
        "caches",
        "Caches and steps",
        "What every cache can do, whatever its policies: sequences, steps with ``append`` and ``attend``, and the operations on sequences. "
        ":doc:`Operations on sequences </docs/operations>` says what each costs and promises.",
        ["cache.hpp", "cache_types.hpp", "sequence/handle.hpp", "executor.hpp", "error.hpp"],
    ),
    (
        "making",
        "Making a cache",
        "A cache is put together from policies, taken from the presets, or made by name at run time.",
        ["xcache.hpp", "preset.hpp", "registry.hpp", "registry_svd.hpp", "scheme_info.hpp", "scheme.hpp", "xquant.hpp"],
    ),
    (
        "runtime",
        "The compiled library",
        "Caches by name out of ``xquant::runtime``, which picks the processor's code when a program runs. "
        ":doc:`Embedding </docs/embedding>` compares it with the headers.",
        ["runtime.hpp"],
    ),
    (
        "models",
        "Models and rows",
        "What the library has to know of a model, and the views in which rows and weights are handed over.",
        ["model.hpp", "types.hpp", "position/scaling.hpp"],
    ),
    (
        "quantizers",
        "Quantizers",
        "The first slot of ``XCache``: how the values of one group become codes. :doc:`Policies </docs/policies>` compares them.",
        [f"quantizer/{name}.hpp" for name in ("uniform", "codebook", "non_uniform", "outliers", "per_stream", "requantizable")]
        + [f"quantizer/{name}.hpp" for name in ("unquantized", "ggml", "group")]
        + ["quantizer"],
    ),
    (
        "layouts",
        "Layouts and cross-layer",
        "The second and third slot of ``XCache``: which values share a group, and what a layer stores of its rows.",
        ["layout.hpp", "cross_layer.hpp"],
    ),
    (
        "projections",
        "Projections",
        "The fourth slot of ``XCache``: what is stored of X, and how K and V come back.",
        [f"projection/{name}.hpp" for name in ("projection", "x", "key_value", "svd", "joint_svd", "latent", "plan", "rotation")]
        + ["projection"],
    ),
    (
        "own",
        "Policies of your own",
        "What each slot asks of a type, and the tests that a policy of your own has to pass.",
        ["concepts.hpp"] + [f"testing/{name}.hpp" for name in ("contract", "quantizer", "layout", "projection")] + ["testing"],
    ),
    (
        "planning",
        "Planning",
        "Which schemes fit, how fast they are and what they cost in predictions, before a cache is made. "
        ":doc:`Planner </docs/planner>` compares that with what was measured.",
        ["planner.hpp", "planner/machine.hpp", "planner/measure.hpp", "planner/work.hpp", "planner"],
    ),
    (
        "serving",
        "Memory and prefixes",
        "Bytes by purpose, the index of known prompts, memory on huge pages, and sequences that change their scheme.",
        ["storage/ledger.hpp", "serving/prefix_index.hpp", "serving/huge_pages.hpp", "transcode.hpp", "serving"],
    ),
    (
        "files",
        "Saved caches",
        "Sequences written to a file, and read or mapped back.",
        [f"persistence{name}.hpp" for name in ("", "/save", "/load", "/inspect", "/file", "/layout")] + ["persistence"],
    ),
    (
        "stages",
        "Stages by themselves",
        "The codec and the keys of a tile, for engines that want only a part; and the format of stored rows.",
        ["stages.hpp", "storage/format.hpp", "storage/stream.hpp", "storage/page.hpp", "storage"],
    ),
    (
        "machines",
        "Machines and builds",
        "Backends, CUDA, and what a translation unit is compiled for. :doc:`Backends </docs/backends>` says what each does.",
        ["backend/backend.hpp", "cuda.cuh", "config.hpp", "version.hpp"],
    ),
]

INTERNAL = re.compile(r"(core|backend|runtime)/(?!backend\.hpp)")  # headers that the site shows as files
LABEL = r"Throws|Cost|Error|Source"  # begin a paragraph wherever a sentence begins with them
HANGING = r"(?:[A-Z][a-z]+) {2,}"  # begins one that hangs below it


# ----------------------------------------------------------------------------------------------------------------------------------
# Headers, before and beside Doxygen


def for_doxygen(text):
    """A header as Doxygen should read it, line for line. Inline namespaces named by XQUANT_ABI_NS become blocks of extern "C++": the
    instructions that a translation unit may use are no part of a name. Our macros that stand for attributes go. Indented text of
    comments becomes verbatim text, whatever line precedes it: Doxygen's Markdown wants an empty line there, and takes what follows for
    prose otherwise."""
    comment = re.compile(r"(\s*///)(?!<) ?(.*)$")
    text = text.replace("inline namespace XQUANT_ABI_NS {", 'extern "C++" {')
    text = re.sub(r"(?m)^(?!\s*(?:#|//)).*?(?=//|$)", lambda match: re.sub(r"\bXQUANT_[A-Z_]+\b ?(?!\()", "", match[0]), text)
    lines = text.split("\n")
    texts = [match[2] if (match := comment.match(line)) else None for line in lines]
    inside, hangs = [], False
    for one in texts:
        # What hangs below @param or a label is part of its paragraph.
        hangs = one is not None and (bool(re.match(rf"@|{HANGING}", one)) or (hangs and one.startswith(" ")))
        inside.append(one is not None and one.startswith("    ") and not hangs)
    for i, one in enumerate(texts):  # an empty line between two indented ones is part of them
        if one == "" and inside[i - 1] and inside[i + 1]:
            inside[i] = True
    for i, one in enumerate(texts):
        if one is None:
            continue
        if inside[i] and not inside[i + 1] and texts[i + 1] is None:
            lines[i] += " @endverbatim"
        elif not inside[i] and (inside[i - 1] or inside[i + 1]):
            before, after = "@endverbatim " if inside[i - 1] else "", " @verbatim" if inside[i + 1] else ""
            lines[i] = comment.match(lines[i])[1] + " " + before + one + after
    return "\n".join(lines)


def head_comment(text):
    """The comment at a header's head, without its slashes."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("//"):
            break
        lines.append(line[3:] if line.startswith("// ") else line[2:])
    return lines


def copy_headers(include, to):
    """Writes the public headers to a folder, as Doxygen should read them."""
    for path in sorted(include.rglob("xquant/**/*")):
        name = path.relative_to(include / "xquant").as_posix()
        if path.suffix in (".hpp", ".cuh") and not INTERNAL.match(name):
            target = to / path.relative_to(include)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(for_doxygen(path.read_text(encoding="utf-8")), encoding="utf-8")


# ----------------------------------------------------------------------------------------------------------------------------------
# reStructuredText


APART = "\N{ZERO WIDTH NON-JOINER}"  # sets marked text apart from its neighbours; becomes a backslash and a space


def escape(text):
    return re.sub(r"([\\*_|`])", r"\\\1", text)


class Places:
    """Where names of files lead that comments mention: a header's section of the reference, or the page that shows it."""

    FILE = re.compile(r"(?:<xquant/|(?<![\w/.]))([\w/]+\.(?:hpp|cuh|md))(>?)")

    def __init__(self, root):
        self.root, self.sections = root, set()

    def link(self, match):
        name = match[1]
        if name in self.sections:
            return f"{APART}:ref:`{escape(match[0])} <header-{name}>`{APART}".replace("<xquant/", "\\<xquant/", 1)
        for page, there in (("/include/xquant/" + name, "include/xquant/" + name), ("/" + name.removesuffix(".md"), name)):
            if (self.root / there).is_file():
                return f"{APART}:doc:`{escape(match[0])} <{page}>`{APART}".replace("<xquant/", "\\<xquant/", 1)
        return escape(match[0])

    def plain(self, text):
        """Text as it is, with links where it names files."""
        out, done = "", 0
        for match in self.FILE.finditer(text):
            out += escape(text[done : match.start()]) + self.link(match)
            done = match.end()
        return out + escape(text[done:])

    def prose(self, text):
        """Text of a // comment: words in backquotes are code."""
        parts = re.split(r"`([^`]+)`", text)
        return "".join(f"``{part}``" if i % 2 else self.plain(part) for i, part in enumerate(parts)).replace(APART, "\\ ")


def labelled(paragraph):
    """A paragraph, cut where a label such as Throws begins a sentence."""
    starts = [match.start(1) for match in re.finditer(rf"(?:^|(?<=[.;] ))((?:{LABEL})\b[ :])", paragraph)]
    cuts = sorted({0, *starts, len(paragraph)})
    for begin, end in zip(cuts, cuts[1:]):
        part = paragraph[begin:end].strip()
        part = re.sub(r"^(\w+:?)", r"**\1**", part) if begin in starts else part
        yield part.replace(APART, "\\ ")


def literal(lines):
    body = textwrap.dedent("\n".join(lines)).strip("\n")
    # Code in comments may leave things out: forced, so that it is coloured all the same.
    head = ".. code-block:: cpp\n   :force:\n\n" if looks_like_code(body) else "::\n\n"
    return head + textwrap.indent(body, "   ")


def looks_like_code(body):
    return re.search(r";\s*($|//)|^#include|^template|^struct \w+ \{", body, re.M) is not None


def with_tables_indented(lines):
    """Paragraphs that are set in columns, and go on below one of them, stand as they are."""
    out = list(lines)
    for i, line in enumerate(lines):
        begins = i == 0 or not lines[i - 1].strip()
        if begins and re.match(r"\S+(?: \S+)* {3,}\S", line) and not re.match(HANGING, line):
            end = next((k for k in range(i, len(lines)) if not lines[k].strip()), len(lines))
            if any(one.startswith("    ") for one in lines[i:end]):
                out[i:end] = ["    " + one for one in lines[i:end]]
    return out


def head_blocks(lines, places):
    """A header's comment: paragraphs, some that begin with a label and hang below it, and text that stands as it is."""
    out, paragraph, code, hanging = [], [], [], 0
    lines = with_tables_indented(lines)

    def flush():
        nonlocal hanging
        if paragraph:
            text = places.prose(" ".join(" ".join(paragraph).split()))
            out.append(re.sub(r"^(\w+)", r"**\1**", text) if hanging else text)
        if any(code):
            out.append(literal(code))
        paragraph.clear()
        code.clear()
        hanging = 0

    for line in lines:
        indent = len(line) - len(line.lstrip())
        label = re.match(HANGING, line)
        if not line.strip():
            if code:
                code.append("")
            else:
                flush()
        elif hanging and indent == hanging:
            paragraph.append(line)
        elif indent >= 4:
            if not code:
                flush()
            code.append(line)
        else:
            if code or label:
                flush()
            if label:
                hanging = len(label[0])
            paragraph.append(line)
    flush()
    return out


class Text:
    """Doxygen's descriptions as reStructuredText. `names` are the qualified names of what a refid stands for."""

    ENTITIES = {"ndash": "-", "mdash": "-", "nonbreakablespace": " ", "linebreak": " ", "sp": " "}

    def __init__(self, names, places):
        self.names, self.plain = names, places.plain

    def inline(self, node):
        out = self.plain(node.text or "")
        for child in node:
            out += self.inline_element(child) + self.plain(child.tail or "")
        return out

    def inline_element(self, node):
        text = "".join(node.itertext())
        # Doxygen links every word that is a name, too: "Plain data", "Bytes of codes". Names are told by their form here.
        is_name = re.search(r"[A-Za-z0-9][A-Z]|[A-Z]\w*[A-Z]|_|::|\(|<", text) is not None
        if node.tag == "ref" and node.get("refid") in self.names and is_name:
            return f"{APART}:cpp:any:`{text.replace('<', chr(92) + '<')} <{self.names[node.get('refid')]}>`{APART}"
        if node.tag == "computeroutput":
            return f"{APART}``{text}``{APART}"
        if node.tag in ("bold", "emphasis"):
            mark = "**" if node.tag == "bold" else "*"
            return f"{APART}{mark}{escape(text)}{mark}{APART}"
        if node.tag == "ulink":
            return f"{APART}`{escape(text)} <{node.get('url')}>`__{APART}"
        return self.ENTITIES.get(node.tag) or self.inline(node)

    def blocks(self, node):
        """The blocks of a description."""
        out, line = [], self.plain(node.text or "")

        def flush():
            nonlocal line
            out.extend(labelled(" ".join(line.split())) if line.strip() else [])
            line = ""

        for child in node:
            if child.tag == "para":
                flush()
                out += self.blocks(child)
            elif child.tag in ("verbatim", "preformatted"):
                flush()
                lines = [re.sub(r"^\s*///? ?", "", one) for one in "".join(child.itertext()).split("\n")]
                out.append(literal(lines))
            elif child.tag == "parameterlist":
                flush()
                out.append("\n".join(self.parameters(child)))
            elif child.tag in ("itemizedlist", "orderedlist"):
                flush()
                items = ["\n\n".join(self.blocks(item)) for item in child]
                out.append("\n".join("- " + textwrap.indent(item, "  ").strip() for item in items))
            elif child.tag == "simplesect":
                flush()
                out += self.blocks(child)
            else:
                line += self.inline_element(child)
            line += self.plain(child.tail or "")
        flush()
        return [block for block in out if block.strip()]

    def parameters(self, node):
        kind = {"param": "param", "templateparam": "tparam", "exception": "throws"}.get(node.get("kind"), "param")
        for item in node:
            name = ", ".join("".join(one.itertext()) for one in item.iter("parametername"))
            text = " ".join("\n".join(self.blocks(item.find("parameterdescription"))).split())
            yield f":{kind} {name}: {text}"


# ----------------------------------------------------------------------------------------------------------------------------------
# Declarations


def text_of(node, tag):
    found = node.find(tag)
    return "" if found is None else " ".join("".join(found.itertext()).split())


def tight(code):
    """Doxygen writes Cache< Backend >."""
    return re.sub(r"\s+([>,])", r"\1", re.sub(r"<\s+", "<", code)) if "<" in code else code


def template_prefix(node):
    found = node.find("templateparamlist")
    if found is None:
        return ""
    parameters = []
    for param in found:
        one = " ".join(part for part in (text_of(param, "type"), text_of(param, "declname")) if part)
        default = text_of(param, "defval")
        parameters.append(tight(one + (f" = {default}" if default else "")))
    return f"template<{', '.join(parameters)}> "


def initializer(node):
    value = text_of(node, "initializer")
    return f" {value}" if value and len(value) <= 40 else ""


@dataclass
class Entity:
    """Something public that a header declares."""

    directive: str
    signatures: list
    name: str
    line: int
    blocks: list
    members: list = field(default_factory=list)

    def text(self):
        indent = " " * (len(self.directive) + 6)
        out = f".. {self.directive}:: " + ("\n" + indent).join(self.signatures)
        inside = [block for block in self.blocks] + [member.text() for member in self.members]
        return out + "".join("\n\n" + textwrap.indent(block, "   ") for block in inside)


class Reader:
    """Doxygen's XML, header by header."""

    def __init__(self, folder, places):
        self.compounds = {}
        for entry in xml.parse(folder / "index.xml").getroot():
            if entry.get("kind") in ("class", "struct", "union", "concept", "namespace"):
                self.compounds[entry.get("refid")] = xml.parse(folder / f"{entry.get('refid')}.xml").getroot()[0]
        names = {}
        for refid, compound in self.compounds.items():
            name = re.sub(r"<.*>", "", text_of(compound, "compoundname")).strip()
            if compound.get("kind") != "namespace":
                names[refid] = name
            for member in compound.iter("memberdef"):
                names[member.get("id")] = f"{name}::{text_of(member, 'name')}"
        self.text = Text(names, places)

    def declaring(self):
        """The headers that declare something public."""
        return set(self.headers())

    def headers(self):
        """Entities by header, each list in the order of the header; with the namespace each is in."""
        out = {}
        for compound in self.compounds.values():
            kind, name = compound.get("kind"), text_of(compound, "compoundname")
            if kind == "namespace":
                if name.startswith("xquant"):
                    for scope_member in self.members(compound):
                        out.setdefault(scope_member[0], []).append((name, scope_member[1]))
                continue
            scope = re.sub(r"<.*>", "", name).rpartition("::")[0]
            if compound.get("prot", "public") == "public" and f"{scope}" not in self.class_names():
                entity = self.concept(compound) if kind == "concept" else self.record(compound)
                out.setdefault(compound.find("location").get("file"), []).append((scope, entity))
        for entities in out.values():
            entities.sort(key=lambda pair: pair[1].line)
        return {name.removeprefix("xquant/"): entities for name, entities in out.items()}

    def class_names(self):
        return {
            re.sub(r"<.*>", "", text_of(one, "compoundname")).strip()
            for one in self.compounds.values()
            if one.get("kind") in ("class", "struct", "union")
        }

    def blocks(self, node):
        return [block for tag in ("briefdescription", "detaileddescription") for block in self.text.blocks(node.find(tag))]

    def concept(self, node):
        name = text_of(node, "compoundname").rpartition("::")[2]
        line = int(node.find("location").get("line"))
        return Entity("cpp:concept", [template_prefix(node) + name], name, line, self.blocks(node))

    def record(self, node):
        name = re.sub(r"^([\w:]*::)", "", tight(text_of(node, "compoundname")))
        bases = [tight("".join(one.itertext())) for one in node.iter("basecompoundref") if one.get("prot") == "public"]
        bases = [f"public {base}" for base in bases if "detail::" not in base]
        signature = template_prefix(node) + name + (" : " + ", ".join(bases) if bases else "")
        kind = "class" if node.get("kind") == "class" else "struct"
        line = int(node.find("location").get("line"))
        entity = Entity(f"cpp:{kind}", [signature], name, line, self.blocks(node))
        members = [pair[1] for pair in self.members(node)]
        for inner in node.iter("innerclass"):
            if inner.get("prot") == "public":
                members.append(self.record(self.compounds[inner.get("refid")]))
        members.sort(key=lambda one: one.line)
        entity.members = list(grouped(members))
        return entity

    def members(self, node):
        """(header, entity) of the public members of a class or namespace."""
        own = re.sub(r"<.*>", "", text_of(node, "compoundname")).rpartition("::")[2]
        for member in node.iter("memberdef"):
            name = text_of(member, "name")
            entity = None
            if member.get("prot") == "public":
                entity = getattr(self, "member_" + member.get("kind"), lambda *_: None)(member, name)
            if entity is None:
                continue
            special = name in (own, "~" + own) or name.startswith("operator")
            if special and not entity.blocks and (name != own or re.search(rf"\({own}\s*&&|\(const {own}\s*&", entity.signatures[0])):
                continue  # copies, moves, comparisons: nothing is said of them
            if "detail::" in entity.signatures[0] and not entity.blocks:
                continue
            yield member.find("location").get("file"), entity

    def entity(self, directive, signature, member, name):
        return Entity(directive, [signature], name, int(member.find("location").get("line")), self.blocks(member))

    def member_function(self, member, name):
        returned = tight(text_of(member, "type"))
        words = [word for word in ("static", "explicit") if member.get(word) == "yes" and word not in returned]
        if member.get("virt") in ("virtual", "pure-virtual"):
            words.insert(0, "virtual")
        signature = " ".join([*words, returned, name]).replace("  ", " ").strip() + tight(text_of(member, "argsstring"))
        needed = text_of(member, "requiresclause")
        signature = signature.replace("=default", " = default").replace("=delete", " = delete").replace("=0", " = 0")
        if needed and "requires" not in signature:
            signature += f" requires {needed}"
        return self.entity("cpp:function", template_prefix(member) + signature, member, name)

    def member_variable(self, member, name):
        kind = tight(text_of(member, "type"))
        static = "static " if member.get("static") == "yes" and "static" not in kind else ""
        signature = f"{template_prefix(member)}{static}{kind} {name}{text_of(member, 'argsstring')}{initializer(member)}"
        return self.entity("cpp:var" if "::" in name or "static" in signature else "cpp:member", signature, member, name)

    def member_typedef(self, member, name):
        definition = text_of(member, "definition")
        value = tight(text_of(member, "type")) + text_of(member, "argsstring")
        if "=" in definition:
            value = tight(definition.partition("=")[2].strip().removeprefix("typedef "))
        return self.entity("cpp:type", f"{template_prefix(member)}{name} = {value}", member, name)

    def member_enum(self, member, name):
        kind = "cpp:enum-class" if member.get("strong") == "yes" else "cpp:enum"
        base = text_of(member, "type")
        entity = self.entity(kind, name + (f" : {base}" if base else ""), member, name)
        for value in member.iter("enumvalue"):
            blocks = self.blocks(value)
            entity.members.append(Entity("cpp:enumerator", [text_of(value, "name") + initializer(value)], "", 0, blocks))
        return entity


def grouped(entities):
    """An overload without a comment belongs to the one before it."""
    last = None
    for entity in entities:
        if last is not None and entity.directive == last.directive == "cpp:function":
            if entity.name == last.name and not entity.blocks:
                last.signatures += entity.signatures
                continue
        last = entity
        yield entity


# ----------------------------------------------------------------------------------------------------------------------------------
# Pages


def heading(text, line):
    return f"{text}\n{line * len(text)}\n"


def header_section(root, name, entities, places):
    text = (root / "include/xquant" / name).read_text(encoding="utf-8")
    parts = [f".. _header-{name}:", heading(name, "-"), f"``#include <xquant/{name}>``, :doc:`source </include/xquant/{name}>`"]
    parts += head_blocks(head_comment(text), places)
    scope = None
    named = {}
    for own, entity in entities:
        named.setdefault(own, []).append(entity)
    names = list(dict.fromkeys(f":cpp:any:`{entity.name} <{own}::{entity.name}>`" for own, entity in entities if "<" not in entity.name))
    if len(names) > 3:
        parts.append("Declares " + ", ".join(names) + ".")
    for own, group in named.items():
        for entity in grouped(group):
            if own != scope:
                parts.append(f".. cpp:namespace:: {own}")
                scope = own
            parts.append(entity.text())
    return "\n\n".join(parts)


def write_pages(root, xml_folder, to):
    """Writes the pages; returns their names in order, and complaints."""
    headers = sorted(
        path.relative_to(root / "include/xquant").as_posix()
        for path in (root / "include/xquant").rglob("*")
        if path.suffix in (".hpp", ".cuh")
    )
    places = Places(root)
    reader = Reader(xml_folder, places)
    declaring = reader.declaring()
    plan, complaints = plan_pages(headers, declaring)
    places.sections = {name for page in plan for name in page[3]}
    entities = reader.headers()
    to.mkdir(parents=True, exist_ok=True)
    for file, title, about, mine in plan:
        sections = [header_section(root, name, entities.get(name, []), places) for name in mine]
        (to / f"{file}.rst").write_text("\n\n".join([heading(title, "="), about, *sections]) + "\n", encoding="utf-8")
    (to / "headers.rst").write_text(header_list(root, headers, places), encoding="utf-8")
    return [page[0] for page in plan] + ["headers"], complaints


def plan_pages(headers, declaring):
    """PAGES with the headers that are there, and a page for those that no page names and that declare something public."""
    complaints, taken, plan = [], set(), []
    named = {name for page in PAGES for name in page[3]}
    for file, title, about, entries in PAGES:
        mine = []
        for entry in entries:
            if entry in headers:
                mine.append(entry)
            elif any(name.startswith(entry + "/") for name in headers):
                mine += [name for name in headers if name.startswith(entry + "/") and name not in named and name in declaring]
            else:
                complaints.append(f"docs/site/reference.py: page {file} names include/xquant/{entry}, which is not there")
        taken.update(mine)
        plan.append((file, title, about, mine))
    rest = [name for name in headers if name in declaring and name not in taken]
    if rest:
        plan.append(("more", "Other headers", "What the headers above are made of. Programs seldom need these names.", rest))
    return plan, complaints


def header_list(root, headers, places):
    """A page that names every header and says what it is."""
    parts = [
        heading("All headers", "="),
        "Every header, with the first sentence of its comment. Headers below backend and core are no part of the interface.",
    ]
    folders = {}
    for name in sorted(headers, key=lambda name: (name.rpartition("/")[0], name)):
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    for folder, names in folders.items():
        parts.append(heading(f"xquant/{folder}".rstrip("/"), "-"))
        for name in names:
            paragraph = []
            for line in head_comment((root / "include/xquant" / name).read_text(encoding="utf-8")):
                if not line.strip() or line.startswith("    "):
                    break
                paragraph.append(line.strip())
            first = re.match(r".*?\.(?= |$)|.*", " ".join(paragraph))[0]
            parts.append(f":doc:`{name.rpartition('/')[2]} </include/xquant/{name}>`\n   {places.prose(first)}")
    return "\n\n".join(parts) + "\n"
