"""Run the blocks of one page: python -m tests.docs.play PAGE, in the folder that its files are to be written to."""

import subprocess
import sys
from pathlib import Path
from types import CodeType

from tests.docs.blocks import Block, blocks


def play(page: Path) -> None:
    """Run every block that is to be run. A traceback shows lines of the page."""
    # As in a script: classes of the page belong to "__main__", and so travel to replicas by value.
    namespace: dict[str, object] = {"__name__": "__main__"}
    todo = [block for block in blocks(page) if block.exempt is None]
    for block in todo:
        if block.title:
            Path(block.title).write_text(block.text)
    for block in todo:
        if block.kind == "sh":
            subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], check=True)
        elif block.kind == "python" and not block.title:
            exec(_compiled(block), namespace)


def _compiled(block: Block) -> CodeType:
    code: CodeType = compile("\n" * (block.line - 1) + block.text, block.page, "exec")
    return code


if __name__ == "__main__":
    play(Path(sys.argv[1]))
