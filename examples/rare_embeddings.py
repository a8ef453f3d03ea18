"""What L1 does to the rows of an embedding that are rarely used.

Words of a Zipf distribution; the network has to say which of two classes each belongs to, which only a row of the
embedding that is not zero can carry. A dense gradient has zeros for the words that are not in the batch: Adam moves all
rows and the penalty shrinks all rows at every step. A sparse gradient has the rows of the batch only.

python examples/rare_embeddings.py [--quick]
"""

from __future__ import annotations

import argparse
import warnings

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import wellcond as wc

WORDS, WIDTH, BATCH = 400, 8, 64
BANDS = ((0, 20), (20, 100), (100, 400))  # by rank
RUNS = (
    ("Adam", "none", 0.0),
    ("Adam", "euclidean", 0.25),
    ("Adam", "euclidean", 0.5),
    ("Adam", "original", 5e-4),
    ("Adam", "original", 2.5e-3),
    ("Adam", "intrinsic", 0.01),
    ("Adam", "intrinsic", 0.03),
    ("SparseAdam", "euclidean", 2.0),
    ("SparseAdam", "original", 0.03),
    ("SparseAdam", "intrinsic", 0.3),
)


def train(kind: str, space: str, strength: float, seed: int, steps: int) -> list[float]:
    """Percent of zero entries; of zero rows among the rarest; of words classified right, in each band."""
    torch.manual_seed(seed)
    classes, frequency = torch.randint(2, (WORDS,)), 1 / torch.arange(1, WORDS + 1)
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH, sparse=kind == "SparseAdam"), nn.Linear(WIDTH, 2))
    optimizer = getattr(torch.optim, kind)(model[0].parameters(), lr=3e-3)
    readout = torch.optim.Adam(model[1].parameters(), lr=3e-3)
    if strength:
        wc.regularize(optimizer, wc.penalties.L1(strength), space=space, params="all")
    for _ in range(steps):
        words = torch.multinomial(frequency, BATCH, replacement=True)
        optimizer.zero_grad()
        readout.zero_grad()
        nn.functional.cross_entropy(model(words), classes[words]).backward()
        optimizer.step()
        readout.step()
    with torch.no_grad():
        right = (model(torch.arange(WORDS)).argmax(1) == classes).float()
        zero = (model[0].weight == 0).float()
    rarest = slice(*BANDS[-1])
    return [float(100 * x.mean()) for x in (zero, zero[rarest].prod(1), *(right[a:b] for a, b in BANDS))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, fewer steps")
    seeds, steps = (1, 300) if parser.parse_args().quick else (5, 2000)
    torch.set_num_threads(1)
    out = Table(title=f"L1 on the embedding of {WORDS} Zipf words; %, mean ± deviation over {seeds} seeds")
    out.add_column("L1", no_wrap=True)
    out.add_column("zeros", justify="right", no_wrap=True)
    out.add_column("zero rows,\n101–400", justify="right", no_wrap=True)
    for a, b in BANDS:
        out.add_column(f"right,\n{a + 1}–{b}", justify="right", no_wrap=True)
    for kind, space, strength in RUNS:
        results = 1.0 * torch.tensor([train(kind, space, strength, seed, steps) for seed in range(seeds)])
        spread = results.std(0) if seeds > 1 else torch.zeros(results.shape[1])
        cells = (f"{m:.0f}±{s:.0f}" for m, s in zip(results.mean(0).tolist(), spread.tolist(), strict=True))
        out.add_row(f"{kind}, {space}{f' {strength:g}' if strength else ''}", *cells)
    Console().print(out)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse tensors are called beta at each use
        main()
