"""The page of a fine-tuning run: whole, self-contained, and true to its report."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from made_reports import EVIL, METRIC, NAMES, made_leg, made_report, made_shown
from rasterio.io import MemoryFile

from olmoearth_pipelines.finetuning.report import Score
from olmoearth_pipelines.finetuning.report_curves import BOTTOM, LEFT, RIGHT, TOP, Curve, chart
from olmoearth_pipelines.finetuning.report_html import is_page, per_class, render, write_page
from olmoearth_pipelines.finetuning.run_folder import to_json
from olmoearth_pipelines.probing.class_layout import colours
from olmoearth_pipelines.probing.class_picture import shades
from tests.html_page import Page


def pixels(page: str) -> list[np.ndarray]:
    """[H, W, 3] of every picture in the page."""
    found = []
    for data in re.findall(r'href="data:image/png;base64,([^"]+)"', page):
        with MemoryFile(base64.b64decode(data)) as memory, memory.open() as source:
            found.append(np.moveaxis(source.read([1, 2, 3]), 0, -1))
    return found


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("kind", METRIC)
def test_every_kind_of_target_has_a_page_without_markup_from_data_and_without_outside_references(kind) -> None:
    page = render(made_report(kind), made_shown(kind))
    seen = Page(page)
    assert "script" not in {tag for tag, _ in seen.tags}
    assert EVIL not in page and html.escape(EVIL, quote=True) in page
    assert "land <i>cover</i>" not in page and "land <i>cover</i>" in seen.text
    assert "window <0>" in seen.text
    links = [v for _, attrs in seen.tags for k, v in attrs.items() if k in {"href", "src", "xlink:href"}]
    per_pixel = kind in {"segmentation", "pixel_regression"}
    assert len(links) == 2 * (3 if per_pixel else 1) and all(str(v).startswith("data:image/png") for v in links)
    assert not re.search(r"https?:|url\(|@import|javascript:", page)
    assert "nan" not in seen.text.lower().split()


def test_the_page_says_the_result_with_its_interval_the_recipe_and_the_settings() -> None:
    words = Page(render(made_report())).text
    for part in (
        *("Overall accuracy 0.812", "95 % interval 0.750 to 0.875", "Judged on test", "Best epoch 3 of 4"),
        *("1 200 training, 40 validation, 50 test", "layer-wise rates x 0.65", "Trained parameters 6 200 000"),
        *("raw bands, kNN", "recipe: llrd 0.65", "olmoearth finetune --llrd 0.65", "12 of 60 train windows"),
        *("Labelled, test 57", "F1 (mean over classes) 0.765", "linear head"),
    ):
        assert part in words, part
    assert "DEMO" not in words and "flatter" not in words and "Sweep" not in words


def test_a_run_judged_on_validation_and_demo_weights_are_confessed() -> None:
    words = Page(render(made_report(test=None, judged_on="val", demo=True))).text
    assert words.index("DEMO WEIGHTS") < words.index("Overall accuracy 0.812")
    assert "Judged on validation" in words and "flatter the model" in words


def test_an_error_is_shown_as_the_positive_number_it_is() -> None:
    words = Page(render(made_report("regression"))).text
    assert "RMSE 20.2 95 % interval 19.0 to 22.0" in words
    assert "smaller is better" in words and "−2" not in words


def test_scores_of_classes_are_those_of_the_confusion_matrix() -> None:
    rows = per_class(((30, 2, 0), (1, 20, 4), (0, 0, 0)), NAMES)
    assert [row["support"] for row in rows] == [32, 25, 0]
    assert [row["precision"] for row in rows] == [30 / 31, 20 / 22, 0.0]
    assert [row["recall"] for row in rows] == [30 / 32, 20 / 25, None]
    assert rows[0]["f1"] == pytest.approx(2 * 30 / (32 + 31))
    assert rows[2]["f1"] == 0.0


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_labels_and_answers_have_their_classes_colours_and_the_unlabelled_is_grey() -> None:
    shown = made_shown("segmentation", count=1)
    picture, labels, answer = pixels(render(made_report(), shown))
    first, second, third = (list(ink) for ink in colours(NAMES))
    np.testing.assert_array_equal(picture, shown[0].picture)
    assert labels[0, 0].tolist() == first and labels[7, 7].tolist() == third
    assert len(set(labels[0, 7].tolist())) == 1 and labels[0, 7, 0] >= 140
    assert np.unique(answer.reshape(-1, 3), axis=0).tolist() == [second]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_values_of_labels_and_answers_share_one_scale() -> None:
    shown = made_shown("pixel_regression", count=1)
    _, labels, answer = pixels(render(made_report("pixel_regression"), shown))
    low, middle, high = shades(np.array([4.0, 5.0, 6.0]), 4.0, 6.0).tolist()
    assert labels[0, 0].tolist() == low and labels[7, 7].tolist() == high and answer[3, 3].tolist() == middle
    assert len(set(labels[0, 7].tolist())) == 1


def test_windows_with_one_target_say_label_and_answer_in_words() -> None:
    words = Page(render(made_report("multilabel"), made_shown("multilabel", count=1))).text
    assert f"label: water, {EVIL} answer: none" in words
    words = Page(render(made_report("regression"), made_shown("regression", count=1))).text
    assert "label: 12.5 answer: 13.2" in words


def test_a_sweep_has_a_table_and_a_curve_per_rate_with_the_kept_one_on_top() -> None:
    legs = (made_leg(1e-4, best=2), made_leg(5e-4, epochs=5, best=4), made_leg(1e-3, best=1))
    page = render(made_report(legs=legs, lr=5e-4, best_epoch=4))
    seen = Page(page)
    assert "0.0005 – kept 0.900 4 5" in seen.text and "0.0001 0.700 2 4 (stopped early)" in seen.text
    lines = seen.all("path", "line")
    assert len(lines) == 3 + 3 + 6
    kept = [index for index, attrs in enumerate(lines[:6]) if "kept" in str(attrs["class"])]
    assert kept == [2, 5]


def test_a_report_that_was_read_back_from_json_has_the_same_page(tmp_path) -> None:
    undefined = replace(made_report(), val=Score(name="fine-tuned", value=float("nan"), low=None, high=None), test=None)
    undefined = replace(undefined, judged_on="val")
    content = to_json(undefined)
    assert json.loads(json.dumps(content, allow_nan=False))["val"]["value"] is None
    again = replace(undefined, val=Score(name="fine-tuned", value=None, low=None, high=None))  # type: ignore[arg-type]
    assert render(again) == render(undefined)
    assert "Overall accuracy –" in Page(render(again)).text
    write_page(tmp_path / "report.html", undefined)
    assert is_page(tmp_path / "report.html") and [p.name for p in tmp_path.iterdir()] == ["report.html"]
    (tmp_path / "other.html").write_text("<html></html>")
    assert not is_page(tmp_path / "other.html")


def curve(*values: float | None, **more) -> Curve:
    return Curve(name="c", points=tuple((k + 1, v) for k, v in enumerate(values)), colour="#123456", **more)


def path_of(drawing: str) -> list[tuple[float, float]]:
    d = re.search(r'class="line[^"]*"[^>]*d="M([^"]+)"', drawing).group(1)
    return [tuple(map(float, point.split())) for point in d.split("L")]


def test_a_curve_goes_from_the_first_to_the_last_epoch_between_round_values() -> None:
    points = path_of(chart([curve(0.0, 0.5, 1.0)], "loss"))
    assert points == [(LEFT, BOTTOM), ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2), (RIGHT, TOP)]


def test_a_logarithmic_curve_spaces_powers_of_ten_evenly_and_leaves_zero_out() -> None:
    points = path_of(chart([curve(0.0, 1e-5, 1e-4, 1e-3)], "rate", logarithmic=True))
    assert [x for x, _ in points] == pytest.approx([LEFT + (RIGHT - LEFT) * k / 3 for k in (1, 2, 3)], abs=0.06)
    assert [y for _, y in points] == pytest.approx([BOTTOM, (TOP + BOTTOM) / 2, TOP])


def test_values_that_are_not_there_break_no_chart() -> None:
    assert len(path_of(chart([curve(None, 0.5, math.nan, 1.0)], "loss"))) == 2
    assert chart([curve(None, None)], "loss") == ""
    assert '<circle cx="' in chart([curve(0.7)], "loss")
