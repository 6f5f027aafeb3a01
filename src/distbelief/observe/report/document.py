"""The page as markup: the pieces that it is made of; its head and its look are in `page.html`.

Whatever a run is named or tells is text, and never markup. The page may load nothing and run nothing.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from distbelief.observe.report.output import MARK
from distbelief.observe.report.picture import Picture

_SEEN = 30
"""Letters of a cell that are seen on any screen."""


def document(head: str, body: str) -> str:
    """A whole page under a heading. `body` is markup, `head` is text."""
    page = Template(Path(__file__).with_name("page.html").read_text())
    return page.substitute(mark=MARK, head=escape(head), body=body)


def several(tag: str, texts: Iterable[str]) -> str:
    """An element for each of some texts; `tag` may hold attributes."""
    return "".join(f"<{tag}>{escape(text)}</{tag.split()[0]}>" for text in texts)


def gallery(pictures: Iterable[Picture]) -> str:
    """Pictures side by side, as many as there is room for."""
    return f'<div class="pictures">{"".join(map(_figure, pictures))}</div>'


def _figure(picture: Picture) -> str:
    (width, height), data = picture.pixels, base64.b64encode(picture.png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(picture.alt)}">'
        f"<figcaption><b>{escape(picture.title)}.</b> {escape(picture.caption)}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts that scrolls inside its own box, if it is wider than the page."""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    top = f"<thead><tr>{several('th', head)}</tr></thead>"
    return f'<div class="wide" tabindex="0"><table>{top}<tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    """A text; one that may be too long to be seen is told whole where a pointer rests on it."""
    title = f' title="{escape(text)}"' if len(text) > _SEEN else ""
    return f"<td{title}>{escape(text)}</td>"
