"""The figures of a report by hand, and what it makes of them."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from pipelines.report import words
from pipelines.report.controls import UNTRAINED, Control, control, mrl_index, principal
from pipelines.report.measure import Report, Row, measure, usual_dims
from pipelines.report.neighbours import Found, Truth, best, scores, spearman
from pipelines.report.page import page
from pipelines.report.plot import pictures
from pipelines.report.sample import Sample, draw
from pipelines.report.spread import cosine_histogram, spread
from pipelines.texts import Text
from workers.errors import EnvironmentFault
from workers.records import type_vectors


def circle(*degrees: float) -> type_vectors:
    angles = np.deg2rad(degrees)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)


def f32(*rows: list[float]) -> type_vectors:
    return np.array(rows, np.float32)


# ---- neighbours


def test_what_is_asked_by_hand():
    """The first of twelve on an arc: its nearest are the next ten. Backwards, nine of them are left, and the order is turned."""
    truth = Truth(circle(*range(0, 60, 5)), np.array([0]))
    same = truth.held_against(3 * circle(*range(0, 60, 5)))
    assert (same.recall, same.top1, same.rank_correlation, same.rescored) == (1, 1, pytest.approx(1), 1)
    turned = truth.held_against(circle(0, *range(55, 0, -5)))
    assert (turned.recall, turned.top1) == (pytest.approx(0.9), 0)
    assert turned.rank_correlation == pytest.approx(-1)
    assert turned.rescored == 1, "all eleven are fetched, and ordered anew"


def test_rescoring_finds_what_is_among_forty_and_not_what_is_beyond():
    """Of 101 on an arc: seen so that the ten nearest come after 35 others, and so that five of them come after 40."""
    arc = np.arange(101) * 0.5
    truth = Truth(circle(*arc), np.array([0]))

    def seen(first: list[int]) -> type_vectors:
        order = [0, *first, *(row for row in range(1, 101) if row not in first)]
        angles = np.empty(101)
        angles[order] = arc
        return circle(*angles)

    found = truth.held_against(seen([*range(50, 80), *range(1, 11)]))
    assert (found.recall, found.rescored) == (0, 1)
    found = truth.held_against(seen([*range(50, 85), *range(1, 6)]))
    assert (found.recall, found.rescored) == (0, 0.5)


def test_nobody_finds_himself_and_of_equals_the_first_comes_first():
    found = scores(f32([1, 0], [1, 0], [0, 1], [1, 0]), np.array([1, 3]))
    assert best(found, 2).tolist() == [[0, 3], [0, 1]]


def test_the_shorter_way_has_the_same_recall_and_ten_nearest_need_eleven():
    vectors, turned = circle(*range(0, 60, 5)), circle(0, *range(55, 0, -5))
    truth = Truth(vectors, np.array([0, 11]))
    assert truth.recall(turned) == truth.held_against(turned).recall == pytest.approx(0.9)
    with pytest.raises(ValueError, match="more than 10 vectors"):
        Truth(vectors[:10], np.array([0]))


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([3, 2, 1], [30, 20, 10], 1),
        ([3, 2, 1], [1, 2, 3], -1),
        ([3, 2, 1], [5, 5, 1], 1.5 / (2 * 1.5) ** 0.5),
        ([3, 2, 1], [2, 2, 2], 0),
        ([4, 3, 2, 1], [3, 4, 2, 1], 0.8),  # 1 - 6 · 2 / (4 · 15)
    ],
)
def test_rank_correlation_by_hand(one: list[float], two: list[float], expected: float):
    assert spearman(f32(one), f32(two)) == pytest.approx(expected)
    assert spearman(f32(one, one), f32(two, two[::-1])) == pytest.approx(
        (expected + spearman(f32(one), f32(two[::-1]))) / 2
    ), "a mean over rows"


# ---- how vectors lie


def test_spread_by_hand():
    """Of three, two the same and one across: cosines 1, 0, 0; axes with shares 2/3 and 1/3."""
    found = spread(f32([1, 0], [1, 0], [0, 1]), 2)
    assert found.mean_cosine == pytest.approx(1 / 3)
    assert found.spread == pytest.approx(2 / 3)
    assert found.effective_rank == pytest.approx(3 / 4 ** (1 / 3))
    assert (found.kept_norm, found.least_norm) == (1, 1)


def test_a_cut_keeps_a_part_of_the_length():
    found = spread(f32([0.6, 0.8], [1, 0]), 1)
    assert (found.kept_norm, found.least_norm) == (pytest.approx(0.8), pytest.approx(0.6))
    assert (found.mean_cosine, found.spread, found.effective_rank) == (1, 1, pytest.approx(1))


def test_even_vectors_have_spread_one_and_cosines_of_pairs_are_counted():
    vectors = unit(np.random.default_rng(0).normal(size=(1_500, 32)))
    assert spread(vectors, 32).spread == pytest.approx(1, abs=0.03)
    edges, counts = cosine_histogram(vectors)
    assert (len(edges), sum(counts)) == (len(counts) + 1, 20_000)
    middle = sum(count * (low + high) / 2 for count, (low, high) in zip(counts, pairwise(edges), strict=True)) / 20_000
    assert abs(middle) < 0.02


# ---- controls


def unit(vectors: np.ndarray) -> type_vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def made(rows: int = 300, dim: int = 32, decay: float = 0.0, seed: int = 1) -> type_vectors:
    """Vectors whose dims weigh ever less by ``decay``; 0: all the same, but along axes that lie across the dims."""
    rng = np.random.default_rng(seed)
    if decay:
        return unit(rng.normal(size=(rows, dim)) * np.exp(-decay * np.arange(dim)))
    across, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    return unit((rng.normal(size=(rows, dim)) * np.exp(-0.15 * np.arange(dim))) @ across)


def test_first_dims_that_hold_everything_are_as_good_as_the_best_cut():
    vectors = made(decay=0.5)
    found = control(Truth(vectors, np.arange(100)), vectors, 8)
    assert found.prefix == pytest.approx(found.pca, abs=0.05)
    assert found.index is not None and found.index > 0.9 > found.random


def test_first_dims_like_any_are_as_good_as_random_ones():
    vectors = made()
    truth = Truth(vectors, np.arange(300))
    found = [control(truth, vectors, dim) for dim in (16, 8)]
    index = mrl_index(found)
    assert index is not None and abs(index) < UNTRAINED
    assert all(each.pca > each.random + 0.1 for each in found)


def test_the_best_cut_keeps_the_strongest_axes():
    vectors = f32([2, 0, 0], [-2, 0, 0.1], [0, 1, 0], [0, -1, 0])
    kept = principal(vectors, 2)
    assert np.abs(kept @ kept.T - vectors @ vectors.T).max() < 0.011, "the third axis is worth 0.01"


def test_the_index_by_hand():
    assert Control(64, 0.6, 0.5, 0.9).index == pytest.approx(0.25)
    assert Control(64, 0.6, 0.595, 0.61).index is None
    assert mrl_index([Control(64, 0.6, 0.5, 0.9), Control(32, 0.9, 0.5, 0.9), Control(9, 1, 1, 1)]) == pytest.approx(
        0.625
    )
    assert mrl_index([]) is None


# ---- drawing


def test_a_draw_is_even_and_in_order():
    texts = [Text(str(number)) for number in range(40)]
    taken: Counter[str] = Counter()
    for seed in range(2_000):
        found, read = draw(texts, 10, seed)
        assert (len(found), read) == (10, 40)
        names = [int(text.id) for text in found]
        assert names == sorted(names)
        taken.update(text.id for text in found)
    assert len(taken) == 40 and all(400 < count < 600 for count in taken.values())


def test_fewer_than_wanted_are_all_taken():
    texts = [Text(str(number)) for number in range(5)]
    assert draw(texts, 10) == (texts, 5)
    assert draw([], 10) == ([], 0)


# ---- the whole


def sample(vectors: type_vectors) -> Sample:
    return Sample(vectors, 1_000, len(vectors) + 3, 1, {"empty": 2}, 30, 50 * len(vectors), 200)


@pytest.fixture(scope="module")
def report() -> Report:
    return measure("no-mrl", sample(made(400, 64)), usual_dims(64), 0.95)


def test_usual_dims():
    assert usual_dims(768) == [768, 512, 256, 128, 64]
    assert usual_dims(384) == [384, 256, 128, 64]
    assert usual_dims(64) == [64, 32, 16, 8]
    assert usual_dims(4) == [4]


def test_bytes_and_gigabytes(report: Report):
    sizes = {(row.dim, row.precision): (row.bytes, row.gb) for row in report.rows}
    assert sizes[64, "float32"] == (256, 2.56)
    assert sizes[32, "float16"] == (64, 0.64)
    assert sizes[64, "int8"] == sizes[64, "int8_ranges"] == (64, 0.64)
    assert sizes[16, "binary"] == (2, 0.02)
    assert len(sizes) == 4 * 5


def test_the_cheapest_is_the_smallest_that_is_enough(report: Report):
    enough = [row for row in report.rows if row.found.recall >= 0.95]
    assert report.cheapest is not None and report.cheapest_rescored is not None
    assert report.cheapest.bytes == min(row.bytes for row in enough)
    assert (report.cheapest.dim, report.cheapest.precision) == (64, "int8")
    assert report.cheapest_rescored.bytes < report.cheapest.bytes
    whole = measure("m", sample(made(100, 12)), [12], 1.0)
    assert whole.cheapest is not None and whole.cheapest.found.recall == 1
    assert {row.precision for row in whole.rows} == {"float32", "float16", "int8", "int8_ranges"}, (
        "12 bits fill no byte"
    )
    assert not whole.controls and "was not looked at" in words.verdicts(whole)[-1]


def test_of_equal_sizes_the_one_that_needs_no_ranges_is_the_cheapest(report: Report):
    rows = [
        Row(64, "int8_ranges", 64, Found(0.99, 1, 1, 1)),
        Row(64, "int8", 64, Found(0.96, 1, 1, 1)),
        Row(32, "float16", 64, Found(0.97, 1, 1, 1)),
        Row(64, "float32", 256, Found(1, 1, 1, 1)),
    ]
    assert dataclasses.replace(report, rows=rows).cheapest == rows[2]
    assert dataclasses.replace(report, rows=rows, min_recall=0.98).cheapest == rows[0]
    assert dataclasses.replace(report, rows=rows, min_recall=0.999).cheapest == rows[3]


def test_full_float32_finds_everything_and_float16_nearly(report: Report):
    first, second, third = report.rows[:3]
    assert (first.found.recall, first.found.top1, first.found.rescored) == (1, 1, 1)
    assert first.found.rank_correlation == pytest.approx(1)
    assert second.found.recall >= 0.999 > third.found.recall >= 0.97


def test_full_float32_finds_everything_where_neighbours_are_as_near_as_its_last_bit():
    """Ten clusters of forty texts that hardly differ: rounding once more would order each anew."""
    rng = np.random.default_rng(3)
    near = np.repeat(rng.normal(size=(10, 64)), 40, axis=0) + 3e-5 * rng.normal(size=(400, 64))
    found = measure("m", sample(3 * unit(near)), [64, 32], 1.0)
    first = found.rows[0]
    assert (first.dim, first.precision) == (64, "float32")
    assert (first.found.recall, first.found.top1, first.found.rescored) == (1, 1, 1)
    assert found.cheapest == first and "Cheapest that keeps recall@10 at 1 or above: dim 64" in words.text(found)


def test_where_no_row_keeps_enough_that_is_said(report: Report):
    rows = [
        Row(64, "float32", 256, Found(0.94, 1, 1, 0.96)),
        Row(64, "float16", 128, Found(0.93, 1, 1, 0.94)),
        Row(64, "int8", 64, Found(0.94, 1, 1, 0.94)),
    ]
    found = dataclasses.replace(report, rows=rows)
    assert found.cheapest is None and found.cheapest_rescored == rows[0]
    first, second, *_ = words.verdicts(found)
    assert first == (
        "Nothing keeps recall@10 at 0.95 or above; the most is 0.940, of dim 64, precision int8: choose a lower --min-recall."
    )
    assert "dim 64, precision float32, with 0.960" in second
    none = dataclasses.replace(found, min_recall=0.97)
    assert none.cheapest_rescored is None and len(words.verdicts(none)) == len(words.verdicts(found)) - 1
    for each in (found, none):
        assert words.values(each, "")["cheapest"] is None
        made = page(each, "a command", pictures(each))
        assert 'class="chosen"' not in made and "Nothing keeps recall@10" in made


def test_a_model_that_may_not_be_cut_is_told_from_one_that_may(report: Report):
    assert "no-mrl is no MRL model: its first 32, 16 and 8 dims have recall@10 0." in words.verdicts(report)[-1]
    cut = measure("mrl", sample(made(400, 64, decay=0.12)), [32, 16], 0.95)
    assert "mrl keeps its order when it is cut" in words.verdicts(cut)[-1]
    assert words.values(cut, "")["mrl"] == "yes"


@pytest.mark.parametrize(
    ("index", "says"), [(None, "unknown"), (0.29, "no"), (0.3, "partly"), (0.69, "partly"), (0.7, "yes")]
)
def test_how_an_index_is_judged(index: float | None, says: str):
    assert words._judged(index) == says


def test_too_few_texts_are_said():
    with pytest.raises(
        EnvironmentFault, match="needs 20 different texts, better 1,000, and the input has 19, 1 of 22 being"
    ):
        measure("m", sample(made(19)), [32], 0.95)


def test_a_vector_without_a_direction_where_it_is_cut_is_counted_and_left_out():
    vectors = made(100, 16)
    vectors[3, :8] = 0
    found = measure("m", sample(unit(vectors)), [8], 0.95)
    assert (found.no_direction, found.texts) == (1, 99)
    assert "1 zero at 8 dims" in words.text(found)


def test_json_has_every_figure(report: Report):
    values = json.loads(json.dumps(words.values(report, "a command")))
    assert values["cheapest"] == {"dim": 64, "precision": "int8"}
    assert values["mrl"] == "no" and abs(values["mrl_index"]) < 0.3
    assert values["texts"]["refused"] == {"empty": 2} and values["texts"]["compared"] == 400
    assert len(values["rows"]) == 20 and len(values["controls"]) == 3 and len(values["spread"]) == 4
    assert set(values["rows"][0]) >= {"recall", "top1", "rank_correlation", "rescored", "bytes", "gb_per_10_million"}


# ---- the page


class Outline(HTMLParser):
    """Tags that were opened and not closed, addresses that lead elsewhere, ids."""

    VOID = frozenset({"meta", "path", "use", "rect", "line", "circle", "image"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.ids: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in self.VOID:
            self.open.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._look(attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action"):
                self.links.append(value or "")
            if name == "id":
                self.ids[value or ""] += 1


def test_the_page_is_whole_and_needs_nothing_but_itself(report: Report):
    made = page(report, "stream-embedder report <x> 'y'", pictures(report))
    outline = Outline()
    outline.feed(made)
    assert outline.open == []
    assert (outline.tags["svg"], outline.tags["table"], outline.tags["script"]) == (3, 3, 0)
    assert all(link.startswith("#") for link in outline.links)
    assert set(outline.links) <= {f"#{name}" for name in outline.ids}, "every reference leads somewhere"
    assert all(count == 1 for count in outline.ids.values()), "ids of one picture are not another's"
    outside = [url for url in re.findall(r"https?://[^\"' )]+", made) if "www.w3.org" not in url]
    assert not outside and "@import" not in made
    assert "&lt;x&gt;" in made and "<x>" not in made
    assert made.count('class="chosen"') == 1
    for svg in re.findall(r"<svg.*?</svg>", made, re.DOTALL):
        ET.fromstring(svg)


def test_the_page_without_pictures_says_why(report: Report):
    made = page(report, "a command", {})
    assert "<svg" not in made and "pip install &#x27;stream-embedder[plots]&#x27;" not in made
    assert "stream-embedder[plots]" in made


def test_pictures_are_the_same_each_time(report: Report):
    assert pictures(report) == pictures(report)
