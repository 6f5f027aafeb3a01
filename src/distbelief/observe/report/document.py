"""The page as markup: its head, its look, and the pieces that it is made of.

Whatever a run is named or tells is text, and never markup. The page may load nothing and run nothing.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from distbelief.observe.report.picture import MARK, Picture

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SEEN = 30
"""Letters of a cell that are seen on any screen."""
_CSS = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; font: 1rem/1.45 system-ui, sans-serif; }
body { overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
.note { border-left: .25rem solid #D55E00; background: var(--soft); margin: .75rem 0; padding: .5rem .75rem; }
.figures { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 8.5rem), 1fr)); }
.figures { margin: 0; }
.figures div { background: var(--soft); border-radius: .4rem; padding: .4rem .6rem; }
.figures dt { font-size: .8rem; opacity: .8; }
.figures dd { margin: 0; font-weight: 600; }
.pictures { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.pictures { align-items: start; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: .4rem; }
figcaption { font-size: .875rem; margin-top: .3rem; }
.wide { overflow-x: auto; max-height: 30rem; overflow-y: auto; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: collapse; font-size: .875rem; width: 100%; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
.wide th, .wide td { white-space: nowrap; max-width: 24rem; overflow: hidden; text-overflow: ellipsis; }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: Canvas; max-width: 9rem; }
.settings { overflow-wrap: anywhere; }
.settings th { font-weight: 500; width: 9rem; min-width: 6rem; }
tr:last-child > * { border-bottom: 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); font-size: .875rem; opacity: .8; }
"""


def document(head: str, body: str) -> str:
    """A whole page under a heading. `body` is markup, `head` is text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{MARK}">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(head)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<main><h1>{escape(head)}</h1>\n{body}</main>\n</body>\n</html>\n"
    )


def gallery(pictures: Iterable[Picture]) -> str:
    """Pictures side by side, as many as there is room for."""
    return f'<div class="pictures">{"".join(map(_figure, pictures))}</div>'


def _figure(picture: Picture) -> str:
    width, height = picture.pixels
    data = base64.b64encode(picture.png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(picture.alt)}">'
        f"<figcaption><b>{escape(picture.title)}.</b> {escape(picture.caption)}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts that scrolls inside its own box, if it is wider than the page."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    """A text; one that may be too long to be seen is told whole where a pointer rests on it."""
    title = f' title="{escape(text)}"' if len(text) > _SEEN else ""
    return f"<td{title}>{escape(text)}</td>"
