"""`glmtune checkup`, as a user types it."""

import json
import re
from pathlib import Path

from commands import glmtune
from models import tiny_folder
from proofs import make_checkpoint


def test_an_adapter_of_another_tool_is_looked_at_on_one_page(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    make_checkpoint(base, tmp_path / "mine", {"name": "lora", "r": 4, "dropout": 0}, by=0.05)
    (tmp_path / "mine" / "glmtune.json").unlink()
    asked = ("--base", "base", "--prompts", "2", "--dtype", "fp32")
    done = glmtune("checkup", "mine", *asked, "--json", "-o", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("float32 on cpu") == 1, done.stderr
    assert "the template setting" not in done.stderr
    found = json.loads(done.stdout)
    assert found["kind"] == "lora, PEFT"
    assert found["command"] == "glmtune chat mine --base base"
    assert found["unproven"] == ["its base, its weights, its answers"]
    assert found["answers"]["does"]["state"] == "good"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in (found["answers"]["does"]["words"].split(";")[0], "它会停下来吗？", "Does it stop?"):
        assert words in page
    assert "default-src 'none'" in page
    assert not re.search(r"\b(src|href)=|url\(|@import", page)
    again = glmtune("checkup", "mine", *asked, "-o", "page.html", cwd=tmp_path)
    assert again.returncode == 2
    assert "page.html: is there and will not be overwritten" in again.stderr
    assert "--force" in again.stderr
