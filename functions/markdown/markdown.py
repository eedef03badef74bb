"""Markdown to HTML, in time proportional to the text.

The text may be hostile. So nothing is passed on as HTML, links lead only to known schemes or to relative
places, nesting has a limit, and nothing looks ahead for an end that may be missing: openings wait on a stack until
their end comes, and become plain text if it never does.
"""

import re

DEPTH = 12  # of lists and quotes; what is deeper is text

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`]*)$")
HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
ITEM = re.compile(r"( {0,3})([-*+]|(\d{1,9})[.)])( +|$)")
QUOTE = re.compile(r" {0,3}> ?")
INLINE = re.compile(r"\\[!-/:-@\[-`{-~]|`+|\*+|_+|\[|\]|\n")
SCHEMES = ("http:", "https:", "mailto:")
ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "\0": "\ufffd"})


def render(text):
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join(blocks([tabless(line) for line in lines], 0))


def tabless(line):
    return line.expandtabs(4) if line.startswith((" ", "\t")) else line


def escape(text):
    return text.translate(ESCAPES)


def is_rule(line):
    marks = line.replace(" ", "")
    return len(marks) >= 3 and marks[0] in "-*_" and marks.count(marks[0]) == len(marks)


def starts_block(line, depth):
    """Whether the line ends the paragraph before it."""
    if FENCE.match(line) or HEADING.match(line) or is_rule(line):
        return True
    return depth < DEPTH and bool(QUOTE.match(line) or ITEM.match(line))


def blocks(lines, depth, tight=False):
    """The HTML of lines, in pieces. In a tight list paragraphs are bare."""
    out = []
    at = 0
    while at < len(lines):
        line = lines[at]
        fence, heading = FENCE.match(line), HEADING.match(line)
        if not line.strip():
            at += 1
        elif fence:
            at = code(lines, at, fence, out)
        elif heading:
            size = len(heading[1])
            title = re.sub(r"(?:^|(?<= ))#+$", "", (heading[2] or "").rstrip()).strip()
            out.append(f"<h{size}>{inline(title)}</h{size}>\n")
            at += 1
        elif is_rule(line):
            out.append("<hr>\n")
            at += 1
        elif depth < DEPTH and QUOTE.match(line):
            at = quote(lines, at, depth, out)
        elif depth < DEPTH and ITEM.match(line):
            at = items(lines, at, depth, out)
        else:
            end = at + 1
            while end < len(lines) and lines[end].strip() and not starts_block(lines[end], depth):
                end += 1
            text = inline("\n".join(line.lstrip() for line in lines[at:end]).rstrip())
            out.append(f"{text}\n" if tight else f"<p>{text}</p>\n")
            at = end
    return out


def code(lines, at, fence, out):
    mark, language = fence[1], fence[2].strip().split(" ")[0]
    end = at + 1
    while end < len(lines):
        line = lines[end].strip()
        if len(line) >= len(mark) and line.count(mark[0]) == len(line):
            break
        end += 1
    label = f' class="language-{escape(language)}"' if language else ""
    out.append(f"<pre><code{label}>{escape(''.join(line + chr(10) for line in lines[at + 1 : end]))}</code></pre>\n")
    return end + 1


def quote(lines, at, depth, out):
    inner = []
    while at < len(lines) and (mark := QUOTE.match(lines[at])):
        inner.append(lines[at][mark.end() :])
        at += 1
    out += ["<blockquote>\n", *blocks(inner, depth + 1), "</blockquote>\n"]
    return at


def items(lines, at, depth, out):
    """A list: an item goes on while lines are indented as far as its text, or go on with its paragraph."""
    first = ITEM.match(lines[at])
    found = []
    loose = False
    while at < len(lines):
        item = ITEM.match(lines[at])
        if not item or item[2][-1] != first[2][-1] or is_rule(lines[at]):
            break
        width = item.end() if len(item[4]) in range(1, 5) else item.end(2) + 1
        inner = [lines[at][width:]]
        at += 1
        while at < len(lines):
            line = lines[at]
            if not line.strip():
                inner.append("")
            elif line.startswith(" " * width):
                inner.append(line[width:])
            elif inner[-1] and not starts_block(line, depth):
                inner.append(line.lstrip())
            else:
                break
            at += 1
        ended = len(inner)
        while ended > 1 and not inner[ended - 1]:
            ended -= 1
        following = ITEM.match(lines[at]) if ended < len(inner) and at < len(lines) else None
        loose = loose or "" in inner[1:ended] or bool(following and following[2][-1] == first[2][-1])
        found.append(inner[:ended])
    tag = "ol" if first[3] else "ul"
    start = f' start="{int(first[3])}"' if first[3] and int(first[3]) != 1 else ""
    out.append(f"<{tag}{start}>\n")
    for inner in found:
        out += ["<li>", "".join(blocks(inner, depth + 1, tight=not loose)).rstrip("\n"), "</li>\n"]
    out.append(f"</{tag}>\n")
    return at


class Inline:
    """One run of text. `out` holds HTML pieces; an opening is kept there as plain text, to be replaced if it is closed."""

    def __init__(self, text):
        self.text = text
        self.out = []
        self.open = []  # (kind, index in out); kinds: [ * ** _ __
        self.count = {}  # of each kind in `open`
        self.ticks = {}  # places of backtick runs by their length, last first
        self.parenthesis = -1  # the next `)` that was looked up

    def push(self, kind):
        self.open.append((kind, len(self.out)))
        self.count[kind] = self.count.get(kind, 0) + 1
        self.out.append(kind)

    def pop(self, kind):
        """Takes the last opening of that kind, and all inside it that were not closed: → its index in `out`."""
        while True:
            last, index = self.open.pop()
            self.count[last] -= 1
            if last == kind:
                return index

    def run(self):
        tokens = list(INLINE.finditer(self.text))
        for token in reversed(tokens):
            if token[0][0] == "`":
                self.ticks.setdefault(len(token[0]), []).append(token.start())
        at = 0
        for token in tokens:
            start, mark = token.start(), token[0]
            if start < at:
                continue  # inside a code span or an address
            plain = self.text[at:start]
            at = token.end()
            if mark == "\n":
                line = plain.rstrip(" ")
                self.out += (escape(line), "<br>\n" if len(plain) - len(line) > 1 else "\n")
                continue
            self.out.append(escape(plain))
            if mark[0] == "\\":
                self.out.append(escape(mark[1]))
            elif mark[0] == "`":
                at = self.code(start, at)
            elif mark[0] in "*_":
                self.emphasis(mark, start, at)
            elif mark == "[":
                self.push("[")
            else:
                at = self.link(at)
        self.out.append(escape(self.text[at:]))
        return "".join(self.out)

    def code(self, start, end):
        places = self.ticks[end - start]
        while places and places[-1] <= start:
            places.pop()
        if not places:
            self.out.append(self.text[start:end])
            return end
        inner = self.text[end : places[-1]].replace("\n", " ")
        if inner.strip() and inner[0] == inner[-1] == " ":
            inner = inner[1:-1]
        self.out.append(f"<code>{escape(inner)}</code>")
        return places[-1] + end - start

    def emphasis(self, mark, start, end):
        before = self.text[start - 1] if start else " "
        after = self.text[end] if end < len(self.text) else " "
        word = mark[0] == "_"  # in the middle of a_word it is a letter
        closes = not before.isspace() and not (word and after.isalnum())
        opens = not after.isspace() and not (word and before.isalnum())
        left = len(mark)
        while closes and left:
            one, two = self.count.get(mark[0], 0), self.count.get(mark[0] * 2, 0) if left > 1 else 0
            if not one and not two:
                break
            inner_is_one = one and (not two or self.open[-1][0] == mark[0])
            kind, tag = (mark[0], "em") if inner_is_one else (mark[0] * 2, "strong") if two else (mark[0], "em")
            self.out[self.pop(kind)] = f"<{tag}>"
            self.out.append(f"</{tag}>")
            left -= len(kind)
        while opens and left:
            kind = mark[0] * min(left, 2)
            self.push(kind)
            left -= len(kind)
        self.out.append(mark[0] * left)

    def link(self, at):
        """At a `]`: a link, if a `[` is open and an address follows."""
        if not self.count.get("["):
            self.out.append("]")
            return at
        index = self.pop("[")
        address = self.address(at)
        if address is None:
            self.out.append("]")
            return at
        url, title, end = address
        self.out[index] = f'<a href="{escape(url)}"{title}>'
        self.out.append("</a>")
        # No link in a link: what is open around it can be emphasis, but no bracket.
        if self.count["["]:
            self.open = [entry for entry in self.open if entry[0] != "["]
            self.count["["] = 0
        return end

    def address(self, at):
        if not self.text.startswith("(", at):
            return None
        if self.parenthesis < at:
            self.parenthesis = self.text.find(")", at)
            if self.parenthesis < 0:
                self.parenthesis = len(self.text)  # none is left: never looked for again
        end = self.parenthesis
        if end >= len(self.text) or end - at > 2000:
            return None
        url, _, title = self.text[at + 1 : end].strip().partition(" ")
        title = title.strip()
        if title and (len(title) < 2 or title[0] != title[-1] or title[0] not in "\"'"):
            return None
        # As browsers do: they drop control characters before they look for the scheme.
        url = "".join(letter for letter in url.removeprefix("<").removesuffix(">") if letter > " ")
        scheme, colon, _ = url.partition(":")
        if colon and not any(mark in scheme for mark in "/?#") and not url.lower().startswith(SCHEMES):
            url = "#"
        return url, f' title="{escape(title[1:-1])}"' if title else "", end + 1


def inline(text):
    return Inline(text).run()
