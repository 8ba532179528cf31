"""The README's screenshots, made again from a real training.

    python docs/screenshots.py                # trains the five models on digits first, a minute
    python docs/screenshots.py --runs ROOT    # of runs that `python -m experiments.digits` left

Needs Chromium (Debian's package chromium). Writes docs/images/{site,runs,transfer}.png, each a
picture of few colours and less than 150 kB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "dashboard" / "browser")]

import chromium  # noqa: E402
import pages_kit as kit  # noqa: E402

from distillation.annotate import annotate  # noqa: E402
from distillation.errors import ConfigError, DistillationError  # noqa: E402

LARGEST = 150_000  # bytes
PAGE, STEP = "experiments/cifar10/distill.html", "trainingvalidation-step"
COLUMNS = ["status", "created", "epoch", "teacher", "note"]
SETTINGS = ["temperature", "without_classes"]
METRICS = ["accuracy.test", "agreement.test", "kl.test", "ece.test"]


def main(arguments: list[str] | None = None) -> list[Path]:
    """Make the pictures; returns their paths."""
    parser = argparse.ArgumentParser(description="Make the README's screenshots.")
    parser.add_argument("--runs", type=Path, metavar="ROOT", help="runs on digits (else trained)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", metavar="FOLDER")
    options = parser.parse_args(arguments)
    if chromium.executable() is None:
        raise ConfigError("there is no Chromium: install Debian's package chromium")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        runs = options.runs or _train(Path(scratch) / "runs")
        with chromium.browser(Path(scratch) / "profile") as tab:
            pictures = {"site": _site(tab, Path(scratch) / "site")}
            with kit.dashboard(runs) as origin:
                pictures["runs"] = _runs(tab, origin)
                pictures["transfer"] = _transfer(tab, origin)
    return [_write(options.out / f"{name}.png", png) for name, png in pictures.items()]


def _train(root: Path) -> Path:
    command = [sys.executable, "-m", "experiments.digits", "--runs", str(root)]
    subprocess.run(command, cwd=ROOT, check=True)
    return root


def _site(tab, out: Path) -> bytes:
    """A page of the annotated site: the step, its formulas beside its code."""
    annotate([ROOT / "experiments"], out, title="Knowledge distillation", root=ROOT)
    tab.open(f"file://{out}/{PAGE}", width=1280, height=860)
    tab.run(f"document.getElementById('{STEP}').scrollIntoView({{behavior: 'instant'}})")
    return tab.picture()


def _runs(tab, origin: str) -> bytes:
    """The list of runs, with columns that tell them apart."""
    chosen = [*COLUMNS, *(f"metric {m}" for m in METRICS), *(f"config {s}" for s in SETTINGS)]
    kit.open_list(tab, origin, width=1280, height=430)
    tab.run(f"localStorage.setItem('dashboard.columns', JSON.stringify({chosen}))")
    kit.open_list(tab, origin, width=1280, height=430)
    for row in (1, 3):
        kit.click(tab, f".runs tbody tr:nth-child({row}) .pick input")
    return tab.picture()


def _transfer(tab, origin: str) -> bytes:
    """What the newest student has of its teacher."""
    tab.open(f"{origin}/transfer", width=1600, height=1180)
    for title in ("Agreement", "KL", "Calibration", "Accuracy of each class"):
        kit.drawn(tab, title)
    tab.run("scrollTo(0, 0)")
    return tab.picture()


def _write(path: Path, png: bytes) -> Path:
    """The picture with few colours: text and lines lose nothing by it."""
    packed = BytesIO()
    picture = Image.open(BytesIO(png)).convert("RGB")
    picture.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    if packed.tell() > LARGEST:
        raise ConfigError(f"{path.name} has {packed.tell():,} bytes, more than {LARGEST:,}")
    path.write_bytes(packed.getvalue())
    return path


if __name__ == "__main__":
    try:
        for written in main():
            print(f"{written}  {written.stat().st_size:,} bytes")
    except DistillationError as error:
        sys.exit(str(error))
