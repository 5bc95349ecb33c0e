"""The growth tree as inline SVG: the way to the best straight down the left, losers beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from growgan.report.branches import Branch
from growgan.report.pictures import data_uri, sample_picture
from growgan.report.run import CandidateRecord
from growgan.report.text import count, duration, number, plural, scored, size

CARD_W, CARD_H = 248, 80
GAP_X, GAP_Y = 16, 36
THUMB = 62
STUB_W = 96
STEM = 9 + THUMB // 2
LOSERS_SHOWN = 4
THUMB_BYTES = 1_000_000


@dataclass(frozen=True)
class Node:
    """A branch, or the rest of a parent's losers (``branch`` None), and its place in the grid."""

    branch: Branch | None
    column: int
    row: int
    children: tuple[Node, ...] = ()
    hidden: tuple[Branch, ...] = ()

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below."""
        yield self
        for child in self.children:
            yield from child.walk()


def place(roots: Iterable[Branch]) -> tuple[Node, ...]:
    """Give every branch a column and a row so that no card or line crosses another.

    A branch's first child stands below it; every further one is put as far left as the rows that
    its own subtree takes leave free. Childless losers beyond the best few become one node.
    """
    free: dict[int, int] = {}
    return _place_all(tuple(roots), 0, 0, free)


def _place_all(
    siblings: tuple[Branch, ...], row: int, column: int, free: dict[int, int]
) -> tuple[Node, ...]:
    shown, hidden = _fold(siblings)
    nodes = []
    for b in shown:
        rows = range(row, row + _height(b))
        column = max(column, *(free.get(r, 0) for r in rows))
        free[row] = column + 1
        children = _place_all(b.children, row + 1, column, free)
        nodes.append(Node(b, column, row, children))
    if hidden:
        nodes.append(Node(None, max(column, free.get(row, 0)), row, hidden=hidden))
        free[row] = nodes[-1].column + 1
    return tuple(nodes)


def _fold(siblings: tuple[Branch, ...]) -> tuple[tuple[Branch, ...], tuple[Branch, ...]]:
    """Split siblings, which come best first, into those drawn and those only counted."""
    losers = [b for b in siblings if not (b.children or b.lives or b.leads)]
    hidden = losers[LOSERS_SHOWN:] if len(losers) > LOSERS_SHOWN + 1 else []
    return tuple(b for b in siblings if not any(b is h for h in hidden)), tuple(hidden)


def _height(b: Branch) -> int:
    return 1 + max((_height(child) for child in b.children), default=0)


def tree_svg(roots: Iterable[Branch]) -> str:
    """Return the tree as one ``<svg>`` in its natural size, to be scrolled where it is wide."""
    nodes = [n for root in place(roots) for n in root.walk()]
    if not nodes:
        return '<p class="none">No candidate yet.</p>'
    width = max(_left(n) + (CARD_W if n.branch else STUB_W) for n in nodes) + 2
    height = max(_top(n) for n in nodes) + CARD_H + 2
    leading = [n.branch.face.id for n in nodes if n.branch and n.branch.leads]
    thumbs = _thumbs(nodes)
    return "".join(
        [
            f'<svg class="tree" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            ' role="img" aria-labelledby="tree-t tree-d">'
            '<title id="tree-t">Growth tree</title>'
            f'<desc id="tree-d">{plural(len(nodes), "card")}; the way to the best:'
            f" {escape(', '.join(leading))}.</desc>",
            *(_edge(n, child) for n in nodes for child in reversed(n.children)),
            *(_card(n, n.branch, thumbs) if n.branch else _stub(n) for n in nodes),
            "</svg>",
        ]
    )


def _left(n: Node) -> int:
    return 1 + n.column * (CARD_W + GAP_X)


def _top(n: Node) -> int:
    return 1 + n.row * (CARD_H + GAP_Y)


def _edge(parent: Node, child: Node) -> str:
    x, y = _left(parent) + STEM, _top(parent) + CARD_H
    to_x, to_y = _left(child) + STEM, _top(child)
    middle = y + GAP_Y // 2
    css = "leads" if child.branch and child.branch.leads else "lost"
    if child.branch and child.branch.lives and css == "lost":
        css = "lives"
    path = f"M{x} {y}V{to_y}"
    if to_x != x:
        path = f"M{x} {y}V{middle - 8}Q{x} {middle} {x + 8} {middle}H{to_x - 8}"
        path += f"Q{to_x} {middle} {to_x} {middle + 8}V{to_y}"
    return f'<path class="edge {css}" d="{path}"/>'


def _card(n: Node, b: Branch, thumbs: dict[str, str]) -> str:
    c, x, y = b.face, _left(n), _top(n)
    css = " ".join([b.status, *(["leads"] if b.leads else [])])
    lines = [
        ("head", f"{c.id}  ·  {size(c.resolution, '×')}"),
        ("score", "failed" if b.status == "failed" else f"score {number(c.score)}"),
        *(("growth", part) for part in _growth_lines(b.members[0])),
    ]
    text = "".join(
        f'<text class="{kind}" x="{x + THUMB + 18}" y="{y + 20 + 16.5 * k:.1f}">'
        f"{escape(line)}</text>"
        for k, (kind, line) in enumerate(lines)
    )
    more = len(b.members)
    badge = (
        f'<text class="badge" x="{x + CARD_W - 9}" y="{y + 20}" text-anchor="end">{more} ×</text>'
        if more > 1
        else ""
    )
    return (
        f'<g class="card {css}"><title>{escape(_story(b))}</title>'
        f'<rect x="{x}" y="{y}" width="{CARD_W}" height="{CARD_H}" rx="8"/>'
        f"{_thumb(x + 9, y + 9, thumbs.get(c.id))}{text}{badge}</g>"
    )


def _thumb(x: int, y: int, uri: str | None) -> str:
    if uri is None:
        return f'<rect class="blank" x="{x}" y="{y}" width="{THUMB}" height="{THUMB}" rx="3"/>'
    return f'<image x="{x}" y="{y}" width="{THUMB}" height="{THUMB}" href="{uri}"/>'


def _stub(n: Node) -> str:
    x, y = _left(n), _top(n)
    lines = "".join(f"\n{_story(b)}" for b in n.hidden[:12])
    return (
        f'<g class="card pruned"><title>{len(n.hidden)} more, all given up:{escape(lines)}</title>'
        f'<rect x="{x}" y="{y}" width="{STUB_W}" height="{CARD_H}" rx="8"/>'
        f'<text class="head" x="{x + STUB_W / 2}" y="{y + 36}" text-anchor="middle">'
        f"+ {len(n.hidden)}</text>"
        f'<text class="growth" x="{x + STUB_W / 2}" y="{y + 54}" text-anchor="middle">more pruned'
        "</text></g>"
    )


def _growth_lines(c: CandidateRecord, longest: int = 28) -> list[str]:
    """Return a growth as at most two short lines, G's and D's."""
    if c.parent is None:
        return [f"start: G {c.generator_layers}, D {c.discriminator_layers} layers"]
    parts = [re.sub(r"(\d)x(\d)", r"\1×\2", part.strip()) for part in c.growth.split("|")][:2]
    return [p if len(p) <= longest else p[: longest - 1].rstrip() + "…" for p in parts]


def _story(b: Branch) -> str:
    """Return what the pointer shows over a card."""
    c = b.face
    first, last = b.members[0], b.members[-1]
    ids = c.id if first is last else f"{last.id}, {len(b.members)} slices from {first.id}"
    words = [
        f"{ids} ({b.status}): {first.origin}",
        f"score {scored(c.score, c.score_stderr, '±')}, {size(c.resolution, '×')}",
        f"G {plural(c.generator_layers, 'layer')}, {count(c.generator_parameters)} parameters; "
        f"D {plural(c.discriminator_layers, 'layer')}, {count(c.discriminator_parameters)}",
        f"{count(c.images)} images, {duration(b.seconds)}",
    ]
    return "\n".join(words + [m.error for m in b.members if m.error])


def _thumbs(nodes: list[Node]) -> dict[str, str]:
    """Return 2 x 2 samples for as many cards as the page can carry, the best lineage first."""
    found: dict[str, str] = {}
    left = THUMB_BYTES
    for n in sorted(nodes, key=lambda n: not (n.branch and n.branch.leads)):
        picture = sample_picture(n.branch.face, 2) if n.branch else None
        if picture is None or n.branch is None:
            continue
        uri = data_uri(picture, 2 * THUMB)
        left -= len(uri)
        if left < 0:
            break
        found[n.branch.face.id] = uri
    return found
