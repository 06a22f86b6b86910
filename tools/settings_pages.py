"""Writes the tables of `docs/settings.md` and `docs/settings.zh.md` anew, from the settings' own words.

python -m tools.settings_pages
"""

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {"settings.md": "en", "settings.zh.md": "zh"}


def main() -> None:
    """Write both pages; the head of each, up to its table, stays."""
    for page, language in PAGES.items():
        command = [sys.executable, "-m", "glmtune", "settings", "--markdown", "--lang", language]
        table = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
        path = DOCS / page
        head = path.read_text("utf-8").partition("\n\n| ")[0]
        path.write_text(f"{head}\n\n{table}", encoding="utf-8")


if __name__ == "__main__":
    main()
