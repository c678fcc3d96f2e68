"""A report as one HTML page: nothing is loaded, so it opens from a disk or an attachment, years later too.

Whatever comes from outside (names, reasons, sample texts, definitions) is escaped, and the page's own policy lets no
other script run than the one that sorts tables.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from itertools import groupby

from sweeps.analysis.drawing import Picture
from sweeps.analysis.sections import Report, Section
from sweeps.analysis.tables import Text

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --soft: #f3f4f6; --line: #d5d9df; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --paper: #14171b; --soft: #1e2228; --line: #3a4048; --link: #79b8ff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 92rem;
  margin: 0 auto; padding: 1.5rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
a { color: var(--link); } nav a { margin-right: 1em; white-space: nowrap; }
.facts { margin: .2rem 0 1rem; opacity: .75; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th.word, td.word { text-align: left; } td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
thead th { background: var(--soft); position: sticky; top: 0; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
tbody + tbody tr:first-child td { border-top: 2px solid var(--ink); } tfoot { opacity: .7; }
tbody tr:hover { background: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(40rem, 100%), 1fr)); gap: 0 2rem; }
figure { margin: 1.2rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { font-size: 13px; opacity: .75; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { :root { color-scheme: light; --ink: #000; --paper: #fff; --soft: #f3f4f6; --line: #bbb; }
  body { max-width: none; padding: 0; font-size: 10px; } table { font-size: 8px; } nav { display: none; }
  figure, tr, pre { break-inside: avoid; } .wide { overflow: visible; } thead th { position: static; }
  th, td { padding: .1rem .3rem; } td.word { white-space: normal; } }
"""
# A click on a heading sorts inside each kind (a tbody): numbers of different kinds are not put into one order. Under
# "kind" the kinds themselves are turned round.
SCRIPT = """
"use strict";
const UNITS = {k: 1e3, M: 1e6, G: 1e9};
function key(row, column) {
  const text = row.cells[column].textContent.trim();
  const found = /^([+-]?[\\d.]+)([kMG]?)/.exec(text.replaceAll(",", ""));
  return found ? Number(found[1]) * (UNITS[found[2]] || 1) : text;
}
function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1;
}
function sort(table, heading) {
  const column = heading.cellIndex, up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const parts = Array.from(table.tBodies), turn = up ? 1 : -1;
  for (const part of parts) {
    const rows = Array.from(part.rows).sort((a, b) => turn * compare(key(a, column), key(b, column)));
    part.append(...rows);
  }
  if (heading.dataset.kind) {
    parts.sort((a, b) => turn * a.dataset.kind.localeCompare(b.dataset.kind));
    for (const part of parts) table.insertBefore(part, table.tFoot);
  }
}
for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => sort(button.closest("table"), button.closest("th")));
"""
COMMAND = re.compile(r"`([^`]+)`")
LONG = 60
"""Characters from which on a cell may break."""


def html(report: Report) -> str:
    """The whole page."""
    name = escape(report.folder.config.name)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    ends = [record.trial.datetime_complete for record in report.finished if record.trial.datetime_complete]
    facts = [f"last trial ended {max(ends):%Y-%m-%d %H:%M}" if ends else "no trial has ended",
             *(f"{what} {known}" for what, known in (("commit", report.known("git")), ("on", report.known("machine")))
               if known)]
    links = "".join(f'<a href="#{place}">{escape(section.title)}</a> ' for place, section in _numbered(report))
    body = "\n".join(_section(place, section) for place, section in _numbered(report))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{name}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{name}</h1>
<p class="facts">{escape("; ".join(facts))}</p>
<nav>{links}</nav>
{body}
<script>{SCRIPT}</script>
</body>
</html>
"""


def _numbered(report: Report) -> list[tuple[str, Section]]:
    return [(f"s{place}", section) for place, section in enumerate(report.sections)]


def _section(place: str, section: Section) -> str:
    parts = [f'<section id="{place}">', f"<h2>{escape(section.title)}</h2>"]
    parts += ["<p>" + COMMAND.sub(r"<code>\1</code>", escape(said)) + "</p>" for said in section.paragraphs]
    if section.table is not None:
        parts.append(_table(section.table, section.groups))
    if section.pictures:
        parts.append('<div class="plots">' + "\n".join(map(_figure, section.pictures)) + "</div>")
    if section.text:
        parts.append(f"<pre>{escape(section.text)}</pre>")
    return "\n".join([*parts, "</section>"])


def _table(table: Text, groups: Sequence[str]) -> str:
    """The rows of each group (kind) in a body of their own; those beyond the groups are for reference."""
    kinds = [*groups] or [""] * len(table.rows)
    heads = "".join(f'<th scope="col"{_class(table, column)}{" data-kind=1" if name == "kind" else ""}>'
                    f'<button type="button">{escape(name)}</button></th>' for column, name in enumerate(table.header))
    bodies = []
    for kind, places in groupby(range(len(kinds)), key=kinds.__getitem__):
        lines = "\n".join(_row(table, table.rows[place]) for place in places)
        bodies.append(f'<tbody data-kind="{escape(kind)}">\n{lines}\n</tbody>')
    foot = "\n".join(_row(table, row) for row in table.rows[len(kinds):])
    return (f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n' + "\n".join(bodies)
            + f"\n<tfoot>{foot}</tfoot>\n</table></div>")


def _row(table: Text, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td{_class(table, column, cell)}>{_cell(cell, column == table.code)}</td>"
                            for column, cell in enumerate(cells)) + "</tr>"


def _cell(cell: str, code: bool) -> str:
    return f"<code>{escape(cell)}</code>" if code else escape(cell)


def _class(table: Text, column: int, cell: str = "") -> str:
    names = [*(["word"] if table.is_word(column) else []), *(["long"] if len(cell) > LONG else [])]
    return f' class="{" ".join(names)}"' if names else ""


def _figure(picture: Picture) -> str:
    svg = picture.svg().replace("<svg", f'<svg role="img" aria-label="{escape(picture.name)}"', 1)
    return f"<figure>{svg}<figcaption>{escape(picture.caption)}</figcaption></figure>"
