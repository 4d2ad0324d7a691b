"""What the house's HTML pages share: their look, their policy, and the way text gets into them.

A page needs nothing else: no font, no picture, no script from anywhere. Everything a model, a teacher or a dataset
wrote is untrusted: it is escaped here, and the page's own policy lets no script run but the one it was made with.
"""

from __future__ import annotations

import base64
import hashlib
import html

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2330; --soft: #5b6576; --line: #dfe3ea;
  --accent: #2f6fb5; --good: #1e7f4f; --bad: #b3401f; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1d2128; --text: #e6e9ee; --soft: #9aa4b2;
  --line: #333a45; --accent: #6aa5e3; --good: #5fbf8c; --bad: #e8855f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 0 0 10px; }
h3 { font-size: 15px; margin: 18px 0 6px; }
p { margin: 6px 0; } .soft { color: var(--soft); } code { font: 13px ui-monospace, monospace; }
.about { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 0 0 18px; color: var(--soft); overflow-wrap: anywhere; }
.about b { color: var(--text); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0 0 14px; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 12px 14px; } .tile b { display: block; white-space: nowrap; font-size: 23px; line-height: 1.25; }
.tile span { color: var(--soft); font-size: 13px; }
section { padding: 16px 18px 18px; margin: 0 0 14px; }
ul { margin: 0; padding-left: 20px; } li { margin: 4px 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; text-align: right; border: 1px solid var(--line); }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; } td.diagonal { font-weight: 700; }
table.bars { width: 100%; } table.bars td { border: 0; padding: 3px 14px 3px 0; text-align: left; }
table.bars td:first-child { white-space: nowrap; } table.bars td.bar { width: 50%; min-width: 110px; }
.bar div { display: flex; height: 13px; border-radius: 3px; background: var(--line); overflow: hidden; }
.bar i { background: var(--accent); min-width: 1px; } .bar i + i { opacity: .45; }
svg { display: block; width: 100%; height: auto; } svg rect { fill: var(--accent); } svg rect:hover { opacity: .75; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; } svg line { stroke: var(--line); }
details { border-top: 1px solid var(--line); padding: 8px 0; } summary { cursor: pointer; }
.sample { border-left: 3px solid var(--line); padding: 2px 0 2px 12px; margin: 12px 0; }
.sample dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 14px; margin: 0; }
.sample dt { color: var(--soft); } .sample dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  unicode-bidi: isolate; min-width: 0; }
.good { color: var(--good); } .bad { color: var(--bad); }
@media (max-width: 600px) { .sample dl { grid-template-columns: 100%; } .sample dd { margin-bottom: 6px; } }
@media print { section, .tile { break-inside: avoid; } }
"""


def document(
    title: str, body: str, style: str = "", script: str = "", data: str = "", reload: float | None = None
) -> str:
    """A whole page.

    Args:
      title: of the window; escaped here.
      body: HTML, already escaped.
      style: more CSS, after the house's.
      script: JavaScript; its hash is the only one that the page's policy lets run.
      data: elements after the body that the script reads, such as a JSON block; already escaped.
      reload: seconds after which the page loads itself anew, as it then is; None: never.
    """
    if reload:
        # Not by <meta>, which takes the address that the page was opened with, without what was chosen since.
        script += f"setTimeout(() => location.reload(), {1000 * reload:.0f});\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'" + (f"; script-src 'sha256-{digest}'" if script else "")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        + body
        + "\n</main>\n"
        + data
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def escaped(value: object) -> str:
    """HTML of a text: escaped; characters that no page may hold become the replacement character."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return html.escape("".join(c if (c >= " " and c != "\x7f") or c in "\n\t" else "\ufffd" for c in text))


def section(title: str, *parts: str) -> str:
    """A headed card of HTML parts; empty ones are left out."""
    return f"<section>\n<h2>{escaped(title)}</h2>\n" + "\n".join(filter(None, parts)) + "\n</section>"
