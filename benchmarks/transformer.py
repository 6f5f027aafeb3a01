"""What one stale update costs a small transformer, and what helps: `python -m benchmarks.transformer [--seeds N]`.

A character model of the standard library's source text, AdamW with warm-up and a cosine, in simulated time with real
arithmetic: two replicas of equal speed, so that nearly every gradient is one update old. All arms see the same number
of examples; each is judged by its loss on text that it never saw.
"""

import argparse
import json
import statistics
import sysconfig
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import distbelief as db
from benchmarks.measure import RESULTS, machine

CONTEXT, WIDTH, HEADS, LAYERS, LETTERS = 64, 96, 4, 3, 128
BATCH = 32
EXAMPLES = 12_800
PEAK = 1e-3
WARMUP = 1_280
HELD_OUT = 1_024


class Characters(nn.Module):
    """A decoder with learned positions: (batch, CONTEXT) int64 in, (batch, LETTERS, CONTEXT) logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, LETTERS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the letter that follows each letter."""
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.letters(x) + self.places(torch.arange(length))
        out: Tensor = self.head(self.layers(hidden, mask=mask, is_causal=True)).transpose(1, 2)
        return out


def text() -> Tensor:
    """The source of the standard library's modules in the order of their names, as ASCII codes, int64."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    raw = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    plain = raw.decode("ascii", "replace").replace("\ufffd", "?")
    return torch.frombuffer(bytearray(plain.encode()), dtype=torch.uint8).long()


def task() -> db.Task:
    """Windows of the text: the first 9/10 to train on, the rest held out."""
    codes = text()
    windows = codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    border = len(windows) * 9 // 10
    train, rest = windows[:border], windows[border:]
    held = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))[:HELD_OUT]]
    trained, judged = ((part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in (train, held))
    return db.Task(Characters, nn.CrossEntropyLoss(), train=trained, test=judged)


def adamw(peak: float = PEAK, beta1: float = 0.9) -> db.AdamW:
    """The rule of all arms but for its peak and its momentum."""
    return db.AdamW(db.Cosine(peak, EXAMPLES, WARMUP), betas=(beta1, 0.999))


ARMS: dict[str, dict[str, Any]] = {
    "one replica": {"replicas": 1},
    "two replicas": {},
    "… warm start of 3,200 examples": {"warmstart": 3_200},
    "… Buffered(2)": {"admission": db.Buffered(2)},
    "… Buffered(2), twice the rate": {"admission": db.Buffered(2), "optimizer": adamw(2 * PEAK)},
    "… β₁ = 0.5": {"optimizer": adamw(beta1=0.5)},
    "… β₁ = 0": {"optimizer": adamw(beta1=0.0)},
    "… half the rate": {"optimizer": adamw(PEAK / 2)},
    "… StalenessScaled": {"admission": db.StalenessScaled()},
    "four replicas": {"replicas": 4},
    "… of four, β₁ = 0": {"replicas": 4, "optimizer": adamw(beta1=0.0)},
}


def loss(arm: str, seed: int) -> float:
    """The loss per letter on the held-out text at the end of a run."""
    torch.set_num_threads(1)
    method = db.Downpour(**{"replicas": 2, "batch_size": BATCH, "optimizer": adamw(), **ARMS[arm]})
    with tempfile.TemporaryDirectory() as directory:
        run = db.train(
            task(),
            method,
            engine=db.Simulated(compute=db.Lognormal(0.1, 0.05)),
            until=db.Until(examples=EXAMPLES),
            evaluate_every=db.Every(examples=10 * EXAMPLES),
            directory=directory,
            seed=seed,
            progress=False,
        )
    return float(run.metrics["loss"])


def main() -> None:
    """Measure all arms, print them as a table, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with ProcessPoolExecutor() as pool:
        futures = {pool.submit(loss, arm, seed): arm for seed in seeds for arm in ARMS}
        for future in as_completed(futures):
            found[futures[future]].append(future.result())
    table = Table("arm", "loss", "spread", "of the gap")
    fresh, stale = (statistics.mean(found[arm]) for arm in ("one replica", "two replicas"))
    for arm, losses in found.items():
        mean = statistics.mean(losses)
        closed = f"{(stale - mean) / (stale - fresh):.0%}"
        table.add_row(arm, f"{mean:.3f}", f"{min(losses):.3f}–{max(losses):.3f}", closed)
    Console().print(table)
    figures = {"machine": machine(), "examples": EXAMPLES, "losses": found}
    (RESULTS / "transformer.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
