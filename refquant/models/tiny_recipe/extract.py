"""Markup to plain English paragraphs: one small reader for each kind of file that documentation is written in.

Every reader takes a file's text and returns blocks, `list[(kind, text)]`, kind "h" (heading) or "p" (paragraph).
Code, tables and directives are dropped, inline markup is reduced to its words, and wrapped lines are joined. The
readers are rough on purpose: `clean.is_prose` has the last word on every paragraph.
"""

import gzip
import html
import json
import re

Blocks = list[tuple[str, str]]

# Directives whose indented body is not prose; the body of any other directive (note, function, class ...) is kept.
_NOT_PROSE = re.compile(
    r"code|sourcecode|literal|parsed|image|figure|math|toctree|test|doctest|productionlist|raw|table|csv|list-table|"
    r"index|highlight|ipython|plot|include|auto|module|currentmodule|contents|tabular|graphviz|digraph|rubric|_|\||\["
)
_INLINE = [
    (re.compile(r":[\w:+.-]+:`~?([^`<]+?)\s*(?:<[^`>]*>)?`"), r"\1"),  # :role:`text <target>`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),  # `text <address>`_
    (re.compile(r"\s?\[[#\w*]+\]_"), ""),  # footnote marks
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),  # [text](address)
    (re.compile(r"\*\*([^*]+)\*\*|(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), lambda m: m[1] or m[2]),
    (re.compile(r"`{1,2}([^`]+)`{1,2}_{0,2}"), r"\1"),
]


def inline(text: str) -> str:
    """Replace inline rst and markdown markup by the words it marks."""
    for pattern, to in _INLINE:
        text = pattern.sub(to, text)
    return text


def rst(text: str) -> Blocks:
    """ReStructuredText, and docstrings, which are close enough to it."""
    out, block, skip, literal = [], [], None, False
    lines = text.expandtabs().split("\n")

    def flush():
        nonlocal literal
        if block:
            joined = inline(" ".join(s.strip() for s in block))
            literal = joined.endswith("::")
            out.append(("p", joined[:-1] if literal else joined))
            block.clear()

    level = 0
    for i, line in enumerate(lines):
        stripped = line.strip()
        if not stripped:
            flush()
            continue
        indent = len(line) - len(line.lstrip())
        if skip is not None:
            if indent > skip:
                continue
            skip = None
        if literal:  # the block after "::"
            literal = False
            if indent > level:
                skip = level
                continue
        if stripped.startswith(".. ") or stripped == "..":
            flush()
            name = stripped[3:]
            if not re.match(r"[\w-]+::", name) or _NOT_PROSE.match(name):
                skip = indent
            elif re.match(r"(note|warning|tip|important|caution|attention|hint)::\s+\S", name):
                block.append(name.split("::", 1)[1])
            continue
        if re.fullmatch(r"([=\-~^\"'#*+`.:_])\1{2,}", stripped):
            if len(block) == 1 and i and lines[i - 1].strip() == block[0].strip():
                out.append(("h", inline(block.pop().strip())))
            continue
        if stripped.startswith((">>>", "...", ":", "|", "+-")):
            flush()
            continue
        if re.match(r"([-*+•]|\(?\d+[.)]|#\.)\s+\S", stripped):
            flush()
            stripped = "- " + re.sub(r"^([-*+•]|\(?\d+[.)]|#\.)\s+", "", stripped)
        elif block and indent != level and not block[0].startswith("- "):
            flush()
        level = indent
        block.append(stripped)
    flush()
    return out


def markdown(text: str) -> Blocks:
    """Markdown."""
    text = re.sub(r"(?s)\A---\n.*?\n---\n|<!--.*?-->|^ {0,3}(```|~~~).*?^ {0,3}\1[^\n]*$", "", text, flags=re.M)
    out = []
    for block in re.split(r"\n\s*\n", text):
        if re.match(r"#{1,6} ", block.strip()):
            head, _, block = block.strip().partition("\n")
            out.append(("h", inline(head.strip("# "))))
        if re.match(r" {4}|\t|\s*[|<\[]", block):
            continue
        for item in re.split(r"\n(?=\s*(?:[-*+]|\d+\.)\s)", block):
            item, marks = re.subn(r"^\s*(?:[-*+]|\d+\.)\s+", "", item)
            if item.strip():
                out.append(("p", "- " * bool(marks) + inline(" ".join(item.split()))))
    return out


def pod(text: str) -> Blocks:
    """Perl's plain old documentation, in .pod files or between code."""
    out, on = [], False
    for block in re.split(r"\n\s*\n", text):
        if m := re.match(r"=(\w+)\s*(.*)", block, re.S):
            on = m[1] not in ("cut", "begin", "for")
            if m[1].startswith("head"):
                out.append(("h", _pod_inline(m[2].capitalize() if m[2].isupper() else m[2])))
        elif on and block[:1] not in (" ", "\t", ""):
            out.append(("p", _pod_inline(block)))
    return out


def _pod_inline(text: str) -> str:
    for _ in range(3):  # codes nest
        text = re.sub(r"\b[LX]<(?:([^|<>]*)\|)?([^<>]*)>", lambda m: m[1] or m[2], text)
        text = re.sub(r"\bE<lt>", "<", re.sub(r"\b[BCFISZ](?:<<+ (.+?) >>+|<([^<>]*)>)", r"\1\2", text))
    return " ".join(text.split())


_DROP = r"script|style|pre|programlisting|screen|synopsis|literallayout|verbatim|highlight|example|table|nav"
_HEADS = r"h[1-6]|title|header|refname"
_BREAKS = (
    r"p|para|div|li|item|td|dd|dt|br|ul|ol|dl|section|sect\d|listitem|term|note|tip|simpara|blockquote|description"
)


def tags(text: str) -> Blocks:
    """HTML, and the XML and SGML that manuals are written in."""
    text = re.sub(rf"(?is)<!--.*?-->|<({_DROP})\b[^>]*>.*?</\1\s*>|<!\[CDATA\[.*?\]\]>", "\n\n", text)
    text = re.sub(r"<xref\b[^>]*/>", "that section", text)  # a cross-reference's words are made by the style sheet
    text = re.sub(r"[¶§]|<a class=\"headerlink\".*?</a>", "", text)
    text = re.sub(rf"(?i)<({_HEADS})\b[^>]*>", "\0h", text)
    text = re.sub(rf"(?i)</?({_BREAKS}|{_HEADS})\b[^>]*>", "\0p", text)
    text = html.unescape(re.sub(r"<[^<>]*>", "", text))
    return [(part[0], " ".join(part[1:].split())) for part in text.split("\0") if part[1:].strip()]


def docstrings(text: str) -> Blocks:
    """Every string in triple quotes that starts a line of Python, which is nearly always a docstring."""
    out = []
    for m in re.finditer(r"(?s)(\"{3}|'{3})(.*?)\1", text):
        before = text[text.rfind("\n", 0, m.start()) + 1 : m.start()]
        if len(m[2]) > 60 and before.strip() in ("", "r", "R", "u"):
            first, _, rest = m[2].partition("\n")
            out += rst(first.strip() + "\n" + _dedent(rest))
    return out


def _dedent(text: str) -> str:
    lines = text.split("\n")
    margin = min((len(s) - len(s.lstrip()) for s in lines if s.strip()), default=0)
    return "\n".join(s[margin:] for s in lines)


def comments(text: str) -> Blocks:
    """Comments of Go, Rust, Java, C++ and Ruby: blocks between /* and */, and runs of lines that start with // or #."""
    out = []
    for m in re.finditer(r"(?s)/\*[*!]?(.*?)\*/|(?:^[ \t]*(?://[/!<]?|#(?![!:]))[^\n]*\n){2,}", text, re.M):
        body = re.sub(r"(?m)^[ \t]*(?:\*|//[/!<]?|#)[ ]?", "", m[1] if m[1] is not None else m[0])
        body = re.sub(r"\{@\w+\s+([^}]*)\}", r"\1", body)
        body = re.sub(r"(?is)<pre>.*?</pre>", "\n\n", body)
        body = re.sub(r"(?m)^\s*[@\\](?:param\S*|returns?|throws|brief|p|note|see|since|exception)\b.*", "", body)
        body = html.unescape(
            re.sub(r"</?[a-zA-Z][^<>]*>", "\n\n", re.sub(r"</?(?:code|i|b|em|a|tt)\b[^<>]*>", "", body))
        )
        out += markdown(body)
    return out


def heredocs(text: str) -> Blocks:
    """Elixir's documentation: markdown between triple double quotes."""
    return [
        b for m in re.finditer(r'(?s)@(?:module|type)?doc\s+(?:~S)?"""(.*?)"""', text) for b in markdown(_dedent(m[1]))
    ]


def described(text: str) -> Blocks:
    """The "documentation" and "description" strings of API descriptions in JSON, in the file's order."""
    out = []

    def walk(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("documentation", "description") and isinstance(value, str):
                    out.extend(tags(value) if "<" in value else [("p", inline(" ".join(value.split())))])
                else:
                    walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(json.loads(text))
    return out


READERS = {
    "rst": rst, "txt": rst, "md": markdown, "markdown": markdown, "pod": pod, "pm": pod, "html": tags, "xml": tags,
    "sgml": tags, "py": docstrings, "go": comments, "rs": comments, "java": comments, "h": comments, "hpp": comments,
    "rb": comments, "ex": heredocs, "json": described, "json.gz": described,
}  # fmt: skip


def read(name: str, data: bytes) -> Blocks:
    """Blocks of a file, by the ending of its name; none for an ending without a reader."""
    ending = name.lower().rsplit(".", 1)[-1]
    if ending == "gz":
        ending, data = name.lower().rsplit(".", 2)[-2], gzip.decompress(data)
    reader = READERS.get(ending)
    if reader is None:
        return []
    try:
        return reader(data.decode("utf-8", "ignore").replace("\r\n", "\n"))
    except (ValueError, RecursionError):
        return []
