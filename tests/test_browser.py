"""The report as a browser shows it: nothing overlaps, nothing is cut, and the console stays empty."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_report import make_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 768, 1280)
LOOK = Path(__file__).with_name("layout.js")
# A window cannot be as narrow as a phone's, a frame in it can.
HOST = """<!doctype html><meta name="color-scheme" content="light dark"><body>
<iframe style="border: 0; width: {}px; height: 20000px" srcdoc="{}"></iframe></body>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian's package `chromium`)")


def look(folder: Path, page: str, width: int, dark: bool = False) -> tuple[dict[str, Any], list[str]]:
    """What a headless browser says of a page: its own findings, and the lines of its console."""
    path = folder / "page.html"
    looked_at = page.replace("</body>", f"<script>{LOOK.read_text()}</script></body>")
    path.write_text(HOST.format(width, html.escape(looked_at)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,2000", "--virtual-time-budget=20000"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command = [str(CHROMIUM), *flags, "--dump-dom", path.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answer = re.search(r'<pre id="looked">(.*?)</pre>', result.stdout, flags=re.DOTALL)
    assert answer, result.stderr
    return json.loads(html.unescape(answer[1])), [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overlaps_or_is_cut(tmp_path: Path, width: int, dark: bool) -> None:
    seen, console = look(tmp_path, make_page(), width, dark)
    assert (seen["width"], seen["dark"]) == (width, dark)
    assert seen["ground"] == ("rgb(18, 22, 27)" if dark else "rgb(251, 250, 247)")
    assert seen["texts"] > 300
    assert seen["found"] == []
    assert console == []


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ('<p style="width: 60rem">wide</p>', "page wider than the window"),
        ('<p style="width: 3rem; overflow: hidden; white-space: nowrap">much too long for its box</p>', "cut: P"),
        ("<p>one</p><p style='margin-top: -2.8rem'>other</p>", "overlaps other: P  one"),
        ('<svg viewBox="0 0 100 50" width="100"><text x="80" y="20">beyond</text></svg>', "cut by its chart: text"),
    ],
)
def test_a_fault_of_the_layout_is_seen(tmp_path: Path, fault: str, named: str) -> None:
    seen, _ = look(tmp_path, f"<!doctype html><body>{fault}</body>", 390)
    assert any(line.startswith(named) for line in seen["found"]), seen["found"]


def test_an_error_in_the_console_is_seen(tmp_path: Path) -> None:
    _, console = look(tmp_path, "<!doctype html><body><script>unknown();</script></body>", 390)
    assert "unknown is not defined" in console[0]
