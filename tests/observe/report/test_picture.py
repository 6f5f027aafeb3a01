"""What any picture of a report is like."""

import struct
import warnings
import zlib

import matplotlib as mpl
import pytest

from distbelief.observe.report.output import MARK
from distbelief.observe.report.picture import DPI, WIDTH_IN, Picture, compact, sheet, shown, style, unit_of


def picture(title: str = "loss", tag: str = "") -> Picture:
    figure, (panel,) = sheet(title, 3.0, tag=tag)
    panel.plot([0, 1], [1, 0])
    return Picture("name", title, "caption", "alt", figure)


def chunks(png: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG by kind. Every checksum must be right."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    found: dict[bytes, bytes] = {}
    place = 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        body = png[place + 4 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length : place + 12 + length]) == (zlib.crc32(body),)
        found[body[:4]] = body[4:]
        place += 12 + length
    return found


def test_a_picture_is_a_narrow_png_that_says_whose_it_is() -> None:
    made = picture()
    found = chunks(made.png)
    assert struct.unpack(">II", found[b"IHDR"][:8]) == made.pixels == (round(WIDTH_IN * DPI), 3 * DPI)
    assert MARK.encode() in made.png[:1000]
    assert b"IEND" in found


def test_the_same_drawing_gives_the_same_bytes_whatever_matplotlib_is_set_to() -> None:
    with style():
        first = picture().png
    with mpl.rc_context({"axes.facecolor": "black", "font.size": 30, "text.color": "white"}):
        with style():
            second = picture().png
        assert mpl.rcParams["font.size"] == 30, "what the user has set is left as it was"
    assert first == second


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("loss", "loss"),
        ("two\n lines\t", "two lines"),
        ("\x00\x1b中\ud800", "□□□□"),
        (r"$\frac{1$", r"\$\frac{1\$"),
        ("a" * 20 + "b" * 20, "a" * 15 + "…" + "b" * 14),
    ],
)
def test_text_of_a_run_is_drawn_as_text(text: str, drawn: str) -> None:
    assert shown(text) == drawn
    assert len(shown(text).replace(r"\$", "$")) <= 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture(text).png


def test_the_tag_is_in_the_picture() -> None:
    assert "simulated time" in [text.get_text() for text in picture(tag="simulated time").figure.texts]
    assert "simulated time" not in [text.get_text() for text in picture().figure.texts]


def test_numbers_and_spans_are_told_in_few_letters() -> None:
    told = [compact(value) for value in (0, 0.25, 999, 1500, 20_000, 1.75e6, -3e9, 2e12)]
    assert told == ["0", "0.25", "999", "1.5k", "20k", "1.75M", "-3G", "2T"]
    assert [unit_of(span)[1] for span in (0.0, 599.0, 600.0, 7200.0)] == ["seconds", "seconds", "minutes", "hours"]
