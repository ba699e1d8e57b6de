"""The page of ``stream-embedder report``, looked at in a browser: all of it is seen, nothing is fetched, nothing complains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.report.measure import measure
from pipelines.report.page import page as made_page
from pipelines.report.plot import COLORS, FIRST, INK, PCA, RANDOM, pictures
from pipelines.report.sample import Sample
from tests.browser import Browser, chromium, type_pixels

EXECUTABLE = chromium()
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="there is no browser here: install Chromium, or name one in CHROMIUM"
)
# What each plot draws its lines and bars with: int8_ranges lies behind int8, and the bars are four fifths opaque.
DRAWN = (
    [color for precision, color in COLORS.items() if precision != "int8_ranges"],
    [FIRST, RANDOM, PCA],
    ["#6e8cb7"],
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert EXECUTABLE is not None
    with Browser(EXECUTABLE) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vectors = np.random.default_rng(0).normal(size=(120, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    report = measure("a-model", Sample(vectors, 120, 120, 0, {}, 0, 2_400, 20), (32, 16), 0.95)
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(made_page(report, "stream-embedder report", pictures(report)), encoding="utf-8")
    return file


def seen(picture: type_pixels, color: str) -> int:
    """How many pixels have a colour, up to a little that rounding takes."""
    wanted = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - wanted).max(axis=2) <= 3).sum())


def test_its_plots_are_seen_and_nothing_is_fetched(browser: Browser, page: Path):
    browser.resize(1200, 900)
    opened = browser.open(page)
    assert opened.requests == [page.as_uri()]
    assert opened.complaints == []
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == 3
    assert browser.evaluate("document.fonts.size + document.scripts.length + document.images.length") == 0
    for number, colors in enumerate(DRAWN):
        picture = browser.picture("figure svg", number)
        height, width, _ = picture.shape
        assert width > 500 and height > 250, "a plot that can be read"
        counts = {color: seen(picture, color) for color in colors}
        assert min(counts.values()) >= 20, (number, counts)
        # What an axis is called stands at the bottom, in shapes of letters that are referred to.
        assert (picture[int(0.92 * height) :].max(axis=2) < 120).sum() > 20, number
    chosen = browser.evaluate("getComputedStyle(document.querySelector('tr.chosen td')).backgroundColor")
    assert chosen == "rgb(228, 240, 235)"
    assert seen(browser.picture("h1"), INK) > 200, "and words, in the page's own colour"


@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_a_telephone_and_a_desk(browser: Browser, page: Path, width: int):
    """Wide tables are moved by themselves, and the page is not."""
    browser.resize(width, 900)
    browser.open(page)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    right = browser.evaluate(
        "Math.max(...[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().right))"
    )
    assert right <= width


def test_a_page_that_fetches_and_fails_is_told_from_one_that_does_not(browser: Browser, tmp_path: Path):
    """That what the tests above look for would be heard of."""
    file = tmp_path / "bad.html"
    file.write_text("<img src='other.png'><script>console.error('told'); throw new Error('thrown')</script><svg></svg>")
    opened = browser.open(file)
    assert opened.requests == [file.as_uri(), (tmp_path / "other.png").as_uri()]
    said = "\n".join(opened.complaints)
    assert "told" in said and "thrown" in said and "ERR_FILE_NOT_FOUND" in said
