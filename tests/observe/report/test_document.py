"""The pieces of a page."""

from distbelief.observe.report.document import document, gallery, table


def test_texts_are_never_markup() -> None:
    assert "<title>a &lt;b&gt; c</title>" in document("a <b> c", "<p>body</p>")
    assert "<h1>a &lt;b&gt; c</h1>\n<p>body</p>" in document("a <b> c", "<p>body</p>")
    assert "<th>&lt;i&gt;</th>" in table(["<i>"], [])
    assert "<td>&quot;&amp;</td>" in table(["x"], [['"&']])


def test_a_long_cell_is_told_whole_where_a_pointer_rests() -> None:
    long = '"' + 40 * "x"
    assert f'<td title="&quot;{40 * "x"}">' in table(["x"], [[long], ["short"]])
    assert "<td>short</td>" in table(["x"], [[long], ["short"]])


def test_a_wide_table_scrolls_in_its_own_box() -> None:
    assert table(["x"], []).startswith('<div class="wide" tabindex="0"><table>')
    assert ".wide { overflow-x: auto;" in document("x", "")


def test_no_pictures_are_an_empty_gallery() -> None:
    assert gallery([]) == '<div class="pictures"></div>'
