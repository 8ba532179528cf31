"""The project's script that makes the README's screenshots again."""

from __future__ import annotations

import subprocess
import sys

import pages_kit as kit
from PIL import Image


def test_the_screenshots_are_made_from_recorded_runs(trained, tmp_path):
    made = subprocess.run(
        [sys.executable, kit.ROOT / "docs/screenshots.py", "--runs", trained, "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert made.returncode == 0, made.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"site.png", "runs.png", "transfer.png"}
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 150_000
        with Image.open(path) as picture:
            assert picture.width >= 1280
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20  # not an empty page
