"""The style sheet of a report: system fonts, light and dark mode, phones and print."""

# Colors, shared with the explorer.
PALETTE_CSS = """
:root { color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #1c2127; --soft: #59626e; --rule: #dedbd3;
  --g: #1765a8; --d: #b04a06; --best: #0a7157; --best-soft: #e2f2ec; --bad: #b3261e;
  --other: #9aa1ab; --pruned: #c9c6be; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171b; --card: #1c2026; --ink: #e8eaed; --soft: #a5aeba; --rule: #343a43;
  --g: #6fb4f2; --d: #f2a35c; --best: #52d0a4; --best-soft: #1b332d; --bad: #ff8a80;
  --other: #6d7682; --pruned: #474e58; } }
"""

PAGE_CSS = (
    PALETTE_CSS
    + """* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans",
  Arial, sans-serif; }
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 56px 0 4px; }
h3 { font-size: 1rem; margin: 0; }
p { margin: 0 0 12px; text-wrap: pretty; }
.lead { color: var(--soft); max-width: 75ch; }
.lead, .summary { overflow-wrap: anywhere; }
.banner { border-left: 4px solid var(--d); background: var(--card); padding: 8px 14px;
  margin: 14px 0; }
.note, .none { color: var(--soft); font-size: .875rem; margin: 4px 0 0; }
.overview { display: grid; grid-template-columns: minmax(0, 11fr) minmax(0, 9fr); gap: 36px;
  align-items: start; margin-top: 26px; }
img, svg image { image-rendering: pixelated; }
.overview img { width: 100%; height: auto; display: block; border-radius: 6px;
  background: #808080; }
.tiles { display: grid; grid-template-columns: 1fr 1fr; gap: 1px; margin: 0 0 22px;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 8px; overflow: hidden; }
.tiles div { background: var(--card); padding: 12px 16px; }
.tiles dt { color: var(--soft); font-size: .875rem; }
.tiles dd { margin: 0; font-size: 1.4rem; font-weight: 650; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tiles small { display: block; font-size: .8125rem; font-weight: 400; line-height: 1.5;
  color: var(--soft); }
.tiles .main { grid-column: 1 / -1; }
.tiles .main dd { font-size: 2.2rem; color: var(--best); }
.summary { margin: 0; padding-left: 1.15em; }
.summary li { margin-bottom: 6px; }
.lineage { display: grid; gap: 22px 16px; margin-top: 16px;
  grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); }
.lineage figure, .charts figure { margin: 0; min-width: 0; break-inside: avoid; }
.lineage img, .lineage .blank { width: 100%; height: auto; display: block; border-radius: 5px;
  background: #808080; }
.charts figure img { max-width: 100%; height: auto; }
.lineage figcaption { font-size: .875rem; color: var(--soft); margin-top: 6px; line-height: 1.4; }
.lineage figcaption b { color: var(--ink); }
.lineage .last img { outline: 3px solid var(--best); outline-offset: 2px; }
.lineage .last b { color: var(--best); }
.blank { min-height: 90px; display: grid !important; place-items: center; color: var(--ink);
  font-size: .875rem; }
.scroll { overflow: auto; margin-top: 14px; padding-bottom: 8px; }
.scroll:focus-visible { outline: 2px solid var(--g); outline-offset: 4px; }
.boxed { max-height: 26rem; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--card); padding: 0; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 34px 40px; margin-top: 18px; }
.chart { width: 100%; height: auto; display: block; }
.chart text { font-size: 13px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.rule { stroke: var(--rule); } .axis { stroke: var(--other); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 2px 0 6px;
  font-size: .875rem; color: var(--soft); min-height: 1.4em; }
.key { display: inline-flex; align-items: center; gap: 6px; }
.key i { width: 18px; height: 0; border-top: 3px solid currentColor; }
.key.g i { color: var(--g); } .key.d i { color: var(--d); border-top-style: dashed; }
.key.best i { color: var(--best); } .key.other i { opacity: .45; }
.key.other:not(.g):not(.d) i { color: var(--other); opacity: 1; }
.key.pruned i { color: var(--pruned); }
.key.failed i { color: var(--bad); border-top-style: dashed; }
.key.alive i { color: var(--soft); }
.series { color: var(--soft); } .series.g { color: var(--g); } .series.d { color: var(--d); }
.series.best { color: var(--best); }
.series.other:not(.g):not(.d) { color: var(--other); }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.d .line { stroke-dasharray: 7 4; }
.other .line { stroke-width: 2.5; stroke-dasharray: none; opacity: .38; }
.series circle { fill: currentColor; stroke: var(--paper); stroke-width: 1; }
.raw .line { stroke-width: 1; stroke-dasharray: none; opacity: .4; }
.event { stroke: var(--other); stroke-dasharray: 2 3; }
.error { stroke: currentColor; stroke-width: 1.5; }
.tree { display: block; }
.card rect { fill: var(--card); stroke: var(--soft); stroke-width: 1; }
.card text { font-size: 11.5px; fill: var(--soft); white-space: pre; }
.card .head { font-size: 13px; font-weight: 600; fill: var(--ink); }
.card .score { font-size: 13px; fill: var(--ink); font-variant-numeric: tabular-nums; }
.card.best-lineage rect { stroke: var(--best); stroke-width: 2; }
.card.best rect { fill: var(--best-soft); stroke-width: 3; }
.card.pruned rect { stroke: var(--pruned); fill: none; }
.card.pruned text { fill: var(--soft); } .card.pruned image { filter: grayscale(1); opacity: .6; }
.card.failed rect { stroke: var(--bad); stroke-dasharray: 5 4; fill: none; }
.card.failed .score { fill: var(--bad); }
.card rect.blank { stroke: none !important; fill: var(--rule) !important; }
.edge { fill: none; stroke: var(--pruned); stroke-width: 1.5; }
.edge.alive { stroke: var(--soft); } .edge.best-lineage { stroke: var(--best); stroke-width: 3; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--card); }
td.n, th.n { text-align: right; white-space: nowrap; }
td { overflow-wrap: anywhere; } td.id { white-space: nowrap; }
td.growth { min-width: 15em; }
tr.best td, tr.best th { color: var(--best); font-weight: 600; }
tr.pruned td, tr.failed td { color: var(--soft); }
tr.failed .status { color: var(--bad); }
.bar { display: flex; height: 26px; border-radius: 6px; overflow: hidden; margin: 16px 0 12px;
  background: var(--rule); }
.bar span { min-width: 1px; } .c0 { background: var(--best); } .c1 { background: var(--g); }
.c2 { background: var(--d); } .c3 { background: var(--bad); } .c4 { background: var(--soft); }
.rest { background: var(--other); }
.dot { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
.cost { max-width: 560px; }
pre { margin: 0; padding: 14px 16px; font: .8125rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas,
  "DejaVu Sans Mono", monospace; tab-size: 2; }
footer { color: var(--soft); font-size: .875rem; padding-top: 40px; padding-bottom: 40px; }
@media (max-width: 760px) {
  main, header, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 22px; }
  h1 { font-size: 1.6rem; } h2 { margin-top: 44px; }
  .overview, .charts { grid-template-columns: minmax(0, 1fr); gap: 24px; }
  .charts { gap: 30px; }
  .chart text { font-size: 16px; }
  .lineage { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px 12px; }
  th, td { padding: 6px 8px; } }
@media print {
  :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --soft: #444;
    --rule: #ccc; --g: #1765a8; --d: #b04a06; --best: #0a7157; --best-soft: #e2f2ec;
    --bad: #b3261e; --other: #888; --pruned: #bbb; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll, .boxed { overflow: visible; max-height: none; }
  .tree { max-width: 100%; height: auto; max-height: 90vh; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  tr { break-inside: avoid; } h2 { break-after: avoid; }
  table { font-size: .75rem; } th, td { padding: 4px 6px; overflow-wrap: anywhere; }
  th, td.n, td.id, th.n { white-space: normal; } td.growth { min-width: 0; }
  .overview img { max-width: 11cm; } }
"""
)
