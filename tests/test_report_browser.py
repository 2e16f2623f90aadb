"""The page in a real browser: it renders, in light and dark, on a phone and on paper, and asks for nothing."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_trees import report_tree

from pyrovae.reporting.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium"),
]
PROBE = """
const box = e => { const r = e.getBoundingClientRect(); return [r.width, r.height] };
const ink = s => getComputedStyle(document.querySelector(s)).color;
addEventListener("load", () => parent.postMessage(JSON.stringify({
  width: [document.documentElement.scrollWidth, document.documentElement.clientWidth],
  svgs: [...document.querySelectorAll("figure svg")].map(box).filter(size => size[0] > 0),
  letters: [...document.querySelectorAll("figure text")].filter(e => box(e)[0] > 0).map(e =>
    [parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b), e.textContent]),
  pictures: [...document.querySelectorAll("figure image")].map(box).filter(size => size[0] > 0),
  cut: [...document.querySelectorAll(".scroll, figure div, pre")].filter(e => e.scrollWidth > e.clientWidth).length,
  asked: performance.getEntriesByType("resource").map(e => e.name),
  paper: getComputedStyle(document.documentElement).backgroundColor,
  inks: ["body", "a.source", "figcaption", "caption", ".about", "figure text"].map(s =>
    s == "figure text" ? getComputedStyle(document.querySelector(s)).fill : ink(s)),
}), "*"));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(report_tree('<script>document.title="broken"</script>'), path)
    return path


def browse(*options: str, url: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    fixed = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'user'}",
    )
    wait = ("--virtual-time-budget=20000", "--no-first-run", "--disable-background-networking")
    return subprocess.run(
        [str(BROWSER), *fixed, *wait, *options, url.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def measure(page: Path, folder: Path, width: int, *options: str, style: str = "") -> dict[str, Any]:
    """What the browser says of a copy of the page with a probe in it, in a frame of that width."""
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", page.read_text())
    (folder / "copy.html").write_text(text.replace("</body>", f"{style}<script>{PROBE}</script></body>"))
    frame = f'<iframe src="copy.html" width={width} height=900 style="border:0"></iframe><p id="said"></p>'
    hear = '<script>onmessage = e => document.getElementById("said").textContent = e.data</script>'
    (folder / "frame.html").write_text(f"<!doctype html><body>{hear}{frame}")
    dom = browse("--dump-dom", *options, url=folder / "frame.html", folder=folder).stdout
    return json.loads(html.unescape(dom.split('id="said">')[1].split("</p>")[0]))


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two opaque colours."""
    light = []
    for color in (one, other):
        channels = [int(c) / 255 for c in re.findall(r"\d+", color)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("width", [380, 1200])
def test_every_figure_is_seen_and_nothing_scrolls_sideways(page: Path, tmp_path: Path, width: int) -> None:
    seen = measure(page, tmp_path, width)
    assert seen["width"] == [width, width]
    assert len(seen["svgs"]) == 8
    assert all(300 < size[0] <= width and size[1] > 80 for size in seen["svgs"])
    assert not seen["cut"]
    assert min(seen["letters"])[0] > 7  # pixels
    assert seen["pictures"]
    assert all(min(size) > 1 for size in seen["pictures"])
    assert not seen["asked"]


def test_the_probe_sees_a_page_that_scrolls(page: Path, tmp_path: Path) -> None:
    """Planted: tables as wide as on a desk, first in their scrolling containers, then without these."""
    wide = ".scroll table { width: 60rem }"
    assert measure(page, tmp_path, 380, style=f"<style>{wide}</style>")["cut"] == 4
    seen = measure(page, tmp_path, 380, style=f"<style>{wide} .scroll {{ overflow: visible }}</style>")
    assert seen["width"][0] > seen["width"][1]


@pytest.mark.parametrize("scheme", ["0", "1"])
def test_text_has_contrast_in_dark_and_light(page: Path, tmp_path: Path, scheme: str) -> None:
    seen = measure(page, tmp_path, 800, f"--blink-settings=preferredColorScheme={scheme}")
    is_dark = contrast(seen["paper"], "rgb(0, 0, 0)") < 3
    assert is_dark == (scheme == "0")
    assert min(contrast(ink, seen["paper"]) for ink in seen["inks"]) >= 4.5


def test_the_console_is_silent_and_names_do_not_run(page: Path, tmp_path: Path) -> None:
    run = browse("--dump-dom", "--enable-logging=stderr", url=page, folder=tmp_path)
    assert "CONSOLE" not in run.stderr
    assert "<title>How good is the inference?</title>" in run.stdout


def test_the_console_would_tell(page: Path, tmp_path: Path) -> None:
    """Planted: a script, which the page's own policy refuses."""
    bad = tmp_path / "bad.html"
    bad.write_text(page.read_text().replace("</body>", "<script>document.title = 1</script></body>"))
    run = browse("--dump-dom", "--enable-logging=stderr", url=bad, folder=tmp_path)
    assert "CONSOLE" in run.stderr
    assert "<title>How good is the inference?</title>" in run.stdout


def test_it_prints(page: Path, tmp_path: Path) -> None:
    paper = tmp_path / "report.pdf"
    browse(f"--print-to-pdf={paper}", "--no-pdf-header-footer", url=page, folder=tmp_path)
    content = paper.read_bytes()
    assert content.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20
