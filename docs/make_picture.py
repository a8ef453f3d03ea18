"""The README's picture of a report: a new examination of the digits example, opened in headless Chromium.

python docs/make_picture.py
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync"]


def main() -> None:
    """Write docs/images/report.png."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium on this machine (Debian: apt-get install chromium)")
    picture = HERE / "images" / "report.png"
    picture.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        command = [Path(sys.executable).parent / "wellcond", "examine", HERE.parent / "examples" / "digits.py"]
        subprocess.run([*command, "--output", page], check=True, stdout=subprocess.DEVNULL)
        where = [f"--user-data-dir={folder}/profile", "--window-size=1120,1420", f"--screenshot={picture}"]
        subprocess.run([chromium, *FLAGS, *where, "--virtual-time-budget=8000", page.as_uri()], check=True)
    size = picture.stat().st_size
    if size > 200_000:
        sys.exit(f"{picture} has {size:,} bytes, more than a picture in the repository should")
    print(f"{picture}: {size:,} bytes")


if __name__ == "__main__":
    main()
