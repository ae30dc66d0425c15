"""Take the README's pictures from the report of a finished run, with headless Chromium.

python docs/pictures.py OUT_DIR docs/images
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=8000",
)  # fmt: skip


def shoot(page: Path, picture: Path, width: int, height: int) -> None:
    """Write a screenshot of a local page, all its images loaded (a screenshot does not scroll)."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium found. Remedy: install chromium")
    eager = page.with_name(f"picture-of-{page.name}")
    eager.write_text(page.read_text().replace('loading="lazy"', "").replace('decoding="async"', ""))
    with tempfile.TemporaryDirectory() as profile:
        line = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        subprocess.run([*line, f"--screenshot={picture}", eager.resolve().as_uri()], check=True, capture_output=True)
    eager.unlink()


def main() -> None:
    """Take the pictures of the cohort page and of the first subject's page."""
    out_dir, images = Path(sys.argv[1]), Path(sys.argv[2])
    images.mkdir(parents=True, exist_ok=True)
    shoot(out_dir / "report" / "index.html", images / "cohort-page.png", 1200, 2400)
    shoot(sorted((out_dir / "report" / "subjects").glob("*.html"))[0], images / "subject-page.png", 1200, 2400)


if __name__ == "__main__":
    main()
