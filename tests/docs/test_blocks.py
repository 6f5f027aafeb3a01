"""How the blocks of a page are found."""

from pathlib import Path

from tests.docs.blocks import blocks

PAGE = """
# A page

```python title="mine.py"
x = 1
```

<!-- not run: needs a GPU -->
```python
x = 2
```

```console
$ distbelief train digits \\
    --epochs 2   # a pass takes a second
```

<!-- not run: stands before a sentence, and exempts nothing -->
A sentence.

```sh
true
```
"""


def test_blocks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    first, second, third, fourth = blocks(page)
    assert (first.kind, first.title, first.line, first.text) == ("python", "mine.py", 5, "x = 1\n")
    assert (first.exempt, second.exempt, third.exempt, fourth.exempt) == (None, "needs a GPU", None, None)
    assert third.commands == [["distbelief", "train", "digits", "--epochs", "2"]]
