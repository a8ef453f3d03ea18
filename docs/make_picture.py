"""The pictures of the README and the docs: new runs of the examples, opened in headless Chromium.

python docs/make_picture.py
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync"]


def main() -> None:
    """Write docs/images/density.png, layer.png, report.png, sparse_digits.png and small_batches.png."""
    density()
    layer()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium on this machine (Debian: apt-get install chromium)")
    examples, python = HERE.parent / "examples", Path(sys.executable)
    picture("report", [python.parent / "wellcond", "examine", examples / "digits.py"], "1160,1260", chromium)
    picture("sparse_digits", [python, examples / "sparse_digits.py"], "920,580", chromium)
    picture("small_batches", [python, examples / "small_batches.py"], "1100,480", chromium)


def picture(name: str, command: list[Path | str], size: str, chromium: str) -> None:
    """Run the command, which writes a page to its --output, and photograph the page."""
    target = HERE / "images" / f"{name}.png"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        subprocess.run([*command, "--output", page], check=True, stdout=subprocess.DEVNULL)
        where = [f"--user-data-dir={folder}/profile", f"--window-size={size}", f"--screenshot={target}"]
        subprocess.run([chromium, *FLAGS, *where, "--virtual-time-budget=8000", page.as_uri()], check=True)
    check_size(target)


def layer() -> None:
    """The eigenvalues of what the second convolution of docs/normalization.md sees, under each normalization."""
    import matplotlib
    import matplotlib.pyplot as plt
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    import wellcond as wc

    matplotlib.use("Agg")
    digits = load_digits()
    X, y = torch.tensor(digits.images).float()[:, None], torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    )
    problem = wc.Problem(model, nn.CrossEntropyLoss(), (X, y), dtype=torch.float64)
    seen = next(layer for layer in wc.layer_conditioning(problem) if layer.name == "2")
    kappas = (seen.kappa, seen.centered, seen.scaled, seen.standardized, seen.row_normalized)
    figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (name, eigenvalues), kappa in zip(seen.spectra.items(), kappas, strict=True):
        ax.semilogy(range(1, len(eigenvalues) + 1), eigenvalues.tolist(), label=f"{name}: κ(Ĥ) = {kappa}")
    ax.set(
        xlabel="index, largest first",
        ylabel="eigenvalue of ĤᵀĤ/N",
        title=f"What the second convolution sees: {seen.rows:,} patches, {seen.columns} columns",
    )
    ax.legend(frameon=False)
    target = HERE / "images" / "layer.png"
    figure.savefig(target, dpi=110)
    check_size(target)


def density() -> None:
    """The spectrum of the digits example's Hessian, linear and by decades."""
    import matplotlib
    import matplotlib.pyplot as plt

    import wellcond as wc

    matplotlib.use("Agg")
    spec = importlib.util.spec_from_file_location("digits", HERE.parent / "examples" / "digits.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    run = example.setup()
    H = wc.Hessian(wc.Problem(run.model, run.loss_fn, run.data))
    figure, axes = plt.subplots(2, figsize=(7, 7), layout="constrained")
    for ax, scale in zip(axes, ("linear", "log"), strict=True):
        wc.spectral_density(H, scale=scale).plot(ax)
    target = HERE / "images" / "density.png"
    figure.savefig(target, dpi=110)
    check_size(target)


def check_size(target: Path) -> None:
    """Refuse a picture that is too large for a repository."""
    bytes_ = target.stat().st_size
    if bytes_ > 200_000:
        sys.exit(f"{target} has {bytes_:,} bytes, more than a picture in the repository should")
    print(f"{target}: {bytes_:,} bytes")


if __name__ == "__main__":
    main()
