"""Draws the growth tree as inline SVG, the best lineage straight down the left side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from growgan.report.formatting import (
    format_count,
    format_duration,
    format_number,
    format_resolution,
    format_score,
    pluralize,
)
from growgan.report.growth_tree import TreeNode
from growgan.report.inline_images import png_data_uri, sample_image
from growgan.report.run_record import CandidateRecord

CARD_WIDTH, CARD_HEIGHT = 248, 80
CARD_GAP_X, CARD_GAP_Y = 16, 36
THUMBNAIL_SIZE = 62
STUB_WIDTH = 96  # of a card that stands for several pruned nodes
EDGE_OFFSET_X = 9 + THUMBNAIL_SIZE // 2
MAX_PRUNED_LEAVES = 4  # cards of childless pruned nodes per parent
MAX_THUMBNAIL_BYTES = 1_000_000  # of all thumbnails together
MAX_TOOLTIP_NODES = 12  # pruned nodes that a tooltip describes


@dataclass(frozen=True)
class NodeLayout:
    """A card and its place in the grid.

    Attributes:
        tree_node: The node; None for a card that stands for several pruned nodes.
        folded_nodes: The nodes that such a card stands for.
    """

    tree_node: TreeNode | None
    column: int
    row: int
    children: tuple[NodeLayout, ...] = ()
    folded_nodes: tuple[TreeNode, ...] = ()

    def iter_subtree(self) -> Iterator[NodeLayout]:
        """Yield this node and all below."""
        yield self
        for child in self.children:
            yield from child.iter_subtree()


def layout_tree(roots: Iterable[TreeNode]) -> tuple[NodeLayout, ...]:
    """Give every node a column and a row so that no cards or edges overlap.

    The first child of a node is placed below it. Each further child is placed as far left as the
    rows of its subtree allow. If a node has many childless pruned children, all but the first few
    share one card.
    """
    return _layout_siblings(tuple(roots), row=0, column=0, next_free_column={})


def _layout_siblings(
    siblings: tuple[TreeNode, ...], row: int, column: int, next_free_column: dict[int, int]
) -> tuple[NodeLayout, ...]:
    visible, folded = _fold_pruned_leaves(siblings)
    layouts = []
    for node in visible:
        rows = range(row, row + _subtree_height(node))
        column = max(column, *(next_free_column.get(r, 0) for r in rows))
        next_free_column[row] = column + 1
        children = _layout_siblings(node.children, row + 1, column, next_free_column)
        layouts.append(NodeLayout(node, column, row, children))
    if folded:
        column = max(column, next_free_column.get(row, 0))
        layouts.append(NodeLayout(None, column, row, folded_nodes=folded))
        next_free_column[row] = column + 1
    return tuple(layouts)


def _fold_pruned_leaves(
    siblings: tuple[TreeNode, ...],
) -> tuple[tuple[TreeNode, ...], tuple[TreeNode, ...]]:
    """Split siblings, best first, into those with a card of their own and those that share one."""
    pruned_leaves = [
        node
        for node in siblings
        if not (node.children or node.has_survivors or node.on_best_lineage)
    ]
    folded = pruned_leaves[MAX_PRUNED_LEAVES:] if len(pruned_leaves) > MAX_PRUNED_LEAVES + 1 else []
    folded_ids = {id(node) for node in folded}
    return tuple(node for node in siblings if id(node) not in folded_ids), tuple(folded)


def _subtree_height(node: TreeNode) -> int:
    return 1 + max((_subtree_height(child) for child in node.children), default=0)


def tree_svg(roots: Iterable[TreeNode]) -> str:
    """Return the tree as an ``<svg>`` element in its natural size."""
    layouts = [layout for root in layout_tree(roots) for layout in root.iter_subtree()]
    if not layouts:
        return '<p class="none">No candidate yet.</p>'
    right = max(
        _card_left(layout) + (CARD_WIDTH if layout.tree_node else STUB_WIDTH) for layout in layouts
    )
    width, height = right + 2, max(map(_card_top, layouts)) + CARD_HEIGHT + 2
    best_lineage = [
        layout.tree_node.representative.id
        for layout in layouts
        if layout.tree_node and layout.tree_node.on_best_lineage
    ]
    thumbnails = _encode_thumbnails(layouts)
    edges = [_edge_svg(layout, child) for layout in layouts for child in reversed(layout.children)]
    cards = [
        _card_svg(layout, layout.tree_node, thumbnails)
        if layout.tree_node
        else _folded_card_svg(layout)
        for layout in layouts
    ]
    return (
        f'<svg class="tree" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" aria-labelledby="tree-t tree-d">'
        '<title id="tree-t">Growth tree</title>'
        f'<desc id="tree-d">{pluralize(len(layouts), "card")}. Best lineage:'
        f" {escape(', '.join(best_lineage))}.</desc>{''.join([*edges, *cards])}</svg>"
    )


def _card_left(layout: NodeLayout) -> int:
    return 1 + layout.column * (CARD_WIDTH + CARD_GAP_X)


def _card_top(layout: NodeLayout) -> int:
    return 1 + layout.row * (CARD_HEIGHT + CARD_GAP_Y)


def _edge_svg(parent: NodeLayout, child: NodeLayout) -> str:
    x, y = _card_left(parent) + EDGE_OFFSET_X, _card_top(parent) + CARD_HEIGHT
    to_x, to_y = _card_left(child) + EDGE_OFFSET_X, _card_top(child)
    middle = y + CARD_GAP_Y // 2
    node = child.tree_node
    css_class = "pruned"
    if node and node.on_best_lineage:
        css_class = "best-lineage"
    elif node and node.has_survivors:
        css_class = "alive"
    path = f"M{x} {y}V{to_y}"
    if to_x != x:
        path = f"M{x} {y}V{middle - 8}Q{x} {middle} {x + 8} {middle}H{to_x - 8}"
        path += f"Q{to_x} {middle} {to_x} {middle + 8}V{to_y}"
    return f'<path class="edge {css_class}" d="{path}"/>'


def _card_svg(layout: NodeLayout, node: TreeNode, thumbnails: dict[str, str]) -> str:
    best, x, y = node.representative, _card_left(layout), _card_top(layout)
    css_class = f"{node.status} best-lineage" if node.on_best_lineage else node.status
    score = "failed" if node.status == "failed" else f"score {format_number(best.score)}"
    lines = [
        ("head", f"{best.id}  ·  {format_resolution(best.resolution, '×')}"),
        ("score", score),
        *(("growth", line) for line in _growth_lines(node.segments[0])),
    ]
    text = "".join(
        f'<text class="{kind}" x="{x + THUMBNAIL_SIZE + 18}" y="{y + 20 + 16.5 * k:.1f}">'
        f"{escape(line)}</text>"
        for k, (kind, line) in enumerate(lines)
    )
    if len(node.segments) > 1:
        text += (
            f'<text class="badge" x="{x + CARD_WIDTH - 9}" y="{y + 20}" text-anchor="end">'
            f"{len(node.segments)} ×</text>"
        )
    return (
        f'<g class="card {css_class}"><title>{escape(_tooltip(node))}</title>'
        f'<rect x="{x}" y="{y}" width="{CARD_WIDTH}" height="{CARD_HEIGHT}" rx="8"/>'
        f"{_thumbnail_svg(x + 9, y + 9, thumbnails.get(best.id))}{text}</g>"
    )


def _thumbnail_svg(x: int, y: int, uri: str | None) -> str:
    geometry = f'x="{x}" y="{y}" width="{THUMBNAIL_SIZE}" height="{THUMBNAIL_SIZE}"'
    if uri is None:
        return f'<rect class="blank" {geometry} rx="3"/>'
    return f'<image {geometry} href="{uri}"/>'


def _folded_card_svg(layout: NodeLayout) -> str:
    x, y, count = _card_left(layout), _card_top(layout), len(layout.folded_nodes)
    center = x + STUB_WIDTH / 2
    tooltips = [_tooltip(node) for node in layout.folded_nodes[:MAX_TOOLTIP_NODES]]
    tooltip = "\n".join([f"{count} more, all pruned:", *tooltips])
    return (
        f'<g class="card pruned"><title>{escape(tooltip)}</title>'
        f'<rect x="{x}" y="{y}" width="{STUB_WIDTH}" height="{CARD_HEIGHT}" rx="8"/>'
        f'<text class="head" x="{center}" y="{y + 36}" text-anchor="middle">+ {count}</text>'
        f'<text class="growth" x="{center}" y="{y + 54}" text-anchor="middle">more pruned</text>'
        "</g>"
    )


def _growth_lines(candidate: CandidateRecord, max_chars: int = 28) -> list[str]:
    """Return the edits of G and D as at most two short lines."""
    if candidate.parent_id is None:
        return [f"start: G {candidate.generator_layers}, D {candidate.discriminator_layers} layers"]
    edits = [re.sub(r"(\d)x(\d)", r"\1×\2", edit.strip()) for edit in candidate.growth.split("|")]
    return [
        edit if len(edit) <= max_chars else edit[: max_chars - 1].rstrip() + "…"
        for edit in edits[:2]
    ]


def _tooltip(node: TreeNode) -> str:
    """Return the hover text of a card."""
    best, first, last = node.representative, node.segments[0], node.segments[-1]
    ids = best.id
    if first is not last:
        ids = f"{last.id}, {len(node.segments)} segments from {first.id}"
    score = format_score(best.score, best.score_stderr, "±")
    networks = "; ".join(
        f"{name} {pluralize(num_layers, 'layer')}, {format_count(num_parameters)} parameters"
        for name, num_layers, num_parameters in (
            ("G", best.generator_layers, best.generator_parameters),
            ("D", best.discriminator_layers, best.discriminator_parameters),
        )
    )
    lines = [
        f"{ids} ({node.status}): {first.growth_label}",
        f"score {score}, {format_resolution(best.resolution, '×')}",
        networks,
        f"{format_count(best.images_seen)} images, {format_duration(node.seconds)}",
    ]
    return "\n".join(lines + [segment.error for segment in node.segments if segment.error])


def _encode_thumbnails(layouts: list[NodeLayout]) -> dict[str, str]:
    """Return 2 x 2 samples of as many nodes as the size limit allows, the best lineage first."""
    thumbnails: dict[str, str] = {}
    bytes_left = MAX_THUMBNAIL_BYTES
    nodes = [layout.tree_node for layout in layouts if layout.tree_node]
    for node in sorted(nodes, key=lambda node: not node.on_best_lineage):
        image = sample_image(node.representative, cells_per_side=2)
        if image is None:
            continue
        uri = png_data_uri(image, 2 * THUMBNAIL_SIZE)
        bytes_left -= len(uri)
        if bytes_left < 0:
            break
        thumbnails[node.representative.id] = uri
    return thumbnails
