"""What the flags of `finetune` become, what contradicts itself, and what the terminal says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from olmoearth_cli.commands.finetune import request_of
from olmoearth_cli.commands.finetune_flags import LABELS_ONLY, SAMPLES_TOO, Finetune, Loss, RecipeName
from olmoearth_cli.commands.finetune_text import Watch, epoch_text, next_text, plan_text, report_text, training_text
from olmoearth_cli.commands.options import Precision
from olmoearth_cli.console import Console
from olmoearth_cli.errors import InputError
from olmoearth_pipelines import finetune
from olmoearth_pipelines.finetune import FinetuneRequest
from olmoearth_pipelines.finetuning.report import Epoch, EpochDone, Leg, Score, TrainReport

HERE = Path()


def request(typed: dict[str, Any] | None = None, **ambient: Any) -> FinetuneRequest:
    """Of flags that were typed, and of others that come from the settings file."""
    typed = typed or {}
    return request_of(Finetune(**{"labels": "fields.gpkg", **ambient, **typed}), set(typed), HERE)


def test_llrd_alone_follows_the_published_recipe() -> None:
    made = request({"llrd": 0.65})
    assert made.recipe.kind == "full" and made.recipe.rates == (1e-4,) and made.recipe.plan.frozen is None
    assert made.out == Path("runs/fields") and made.model == "v1.2-tiny"
    assert made.windows is not None and made.windows.folder == Path("datasets/fields")


def test_every_flag_reaches_the_road() -> None:
    made = request(
        {"labels": "a.gpkg", "recipe": RecipeName.FROZEN_START, "sweep": "lr=1e-4,5e-4,1e-3", "augment": True},
        **{"time_dropout": 0.2, "unfreeze_factor": 1.0, "hidden": "64, 32", "loss": Loss.HUBER, "lora": 4},
        **{"precision": Precision.BFLOAT16, "patch_size": 8, "window": 32, "workers": 3, "modalities": "s1,s2"},
        **{"catalog": "a,b", "seed": 7, "task": "classification", "cache_features": False, "max_windows": 9},
    )
    recipe, windows = made.recipe, made.windows
    assert windows is not None
    assert recipe.rates == (1e-4, 5e-4, 1e-3) and recipe.hidden == (64, 32) and recipe.error == "huber"
    assert recipe.augmentation is not None and recipe.augmentation.time_dropout == 0.2 and recipe.lora == 4
    assert not recipe.cache_features and recipe.precision == "bfloat16" and recipe.seed == windows.seed == 7
    assert recipe.plan.frozen is not None and recipe.plan.frozen.factor == 1.0
    assert made.patch_px == windows.patch_px == 8 and windows.window_px == 32 and windows.max_windows == 9
    assert made.workers == windows.workers == 3 and windows.catalogs == ("a", "b")
    assert made.modalities == windows.modalities == ("sentinel2_l2a", "sentinel1") and windows.kind == "classification"


def test_nothing_varies_unless_it_is_asked_for() -> None:
    made = request()
    assert made.recipe.augmentation is None and made.recipe.lrs == () and made.workers == 2


def test_a_kind_is_no_benchmark_and_a_folder_without_a_benchmark_s_name_holds_samples() -> None:
    made = request({"data": Path("geo"), "task": "M-EuroSAT"}, labels=None)
    assert made.task == "m-eurosat" and made.data == Path("geo") and made.out == Path("runs/m-eurosat")
    made = request({"data": Path("/x/cubes"), "field": "srtm", "window": 32, "block_km": 5.0}, labels=None)
    assert made.samples == Path("/x/cubes") and made.label_map == "srtm" and made.block_km == 5.0
    assert made.window_px == 32 and made.out == Path("runs/cubes-srtm")


def test_the_settings_file_may_speak_of_other_data_than_the_command_line() -> None:
    made = request({"dataset": Path("datasets/old")}, catalog="cdse", year=2023, task="segmentation")
    assert made.dataset == Path("datasets/old") and made.windows is None and made.out == Path("runs/old")


@pytest.mark.parametrize(
    ("typed", "ambient", "words"),
    [
        ({"labels": "a", "dataset": Path("b")}, {}, "--labels and --dataset: both"),
        ({"dataset": Path("b"), "year": 2024, "split": "random"}, {}, "--year, --split with --dataset"),
        ({"dataset": Path("b"), "task": "segmentation"}, {}, "--task with --dataset"),
        ({"data": Path("b"), "task": "mados", "field": "x"}, {"labels": None}, "--field with --task"),
        ({"data": Path("b"), "split": "random"}, {"labels": None}, "--split with --data"),
        ({"task": "mados"}, {}, "Name its folder with --data"),
        ({"task": "segmentatoin"}, {}, "Did you mean segmentation"),
        ({"lr": 1e-4, "sweep": "lr=1e-3"}, {}, "--lr and --sweep"),
        ({"sweep": "wd=1e-3"}, {}, "only the rate is swept"),
        ({"sweep": "lr="}, {}, "names no rate"),
        ({"sweep": "lr=x"}, {}, "--sweep lr= x: give a number"),
        ({"llrd": 0.65, "frozen_share": 0.5}, {}, "--frozen-share: only a frozen start"),
        ({"hidden": "64"}, {}, "--hidden with --decoder linear"),
        ({"hidden": "a"}, {}, "--hidden"),
        ({"llrd": 1.5}, {}, "--llrd 1.5"),
        ({"llrd": 0.65, "lora": 4}, {}, "--llrd and --lora"),
        ({"modalities": "s3"}, {}, "unknown modality 's3'"),
    ],
)
def test_what_contradicts_itself_is_refused_with_one_message(typed, ambient, words) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        request(typed, **ambient)


def test_a_typed_rate_beats_the_sweep_of_the_file() -> None:
    assert request({"lr": 2e-4}, sweep="lr=1e-4,1e-3").recipe.rates == (2e-4,)
    assert request({"sweep": "lr=1e-4,1e-3"}, lr=2e-4).recipe.rates == (1e-4, 1e-3)


def test_flags_of_labels_alone_are_flags() -> None:
    assert {*LABELS_ONLY, *SAMPLES_TOO} <= {field.name for field in fields(Finetune)}


def texts(path: Path) -> Iterator[str]:
    """The strings of a module that are no docstrings; what is filled into an f-string is `{}`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    idle = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "{}".join(part.value for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in idle:
            yield node.value


def test_every_flag_that_the_road_names_is_one_of_the_command() -> None:
    package = Path(finetune.__file__).parent
    modules = [package / "finetune.py", *package.glob("finetuning/*.py"), *package.glob("windows/*.py")]
    speaking = [path for path in modules if not path.name.startswith("report_")]  # pages: style sheets, no messages
    named = {flag for path in speaking for text in texts(path) for flag in re.findall(r"--[a-z][a-z-]*", text)}
    assert {"--loss", "--lr", "--split"} <= named
    assert named <= {f"--{field.name.replace('_', '-')}" for field in fields(Finetune)}


def test_bare_it_finds_the_only_labels(tmp_path) -> None:
    (tmp_path / "fields.geojson").write_text("{}")
    made = request_of(Finetune(), set(), tmp_path)
    assert made.windows is not None and made.windows.labels == "fields.geojson"
    (tmp_path / "more.gpkg").write_text("")
    with pytest.raises(InputError, match="--labels"):
        request_of(Finetune(), set(), tmp_path)


def epoch(number: int, *, value: float = 0.7, encoder: float = 1e-5) -> Epoch:
    return Epoch(epoch=number, loss=0.5, value=value, lr=1e-4, lr_encoder=encoder, seconds=10.0, samples_per_s=32.0)


def event(number: int, **changes: Any) -> EpochDone:
    base = EpochDone(leg=1, legs=1, lr=1e-4, epochs=4, epoch=epoch(number), metric="overall_acc", best=False)
    return replace(base, **changes)


def test_an_epoch_is_a_line_with_loss_metric_best_rate_and_time_left() -> None:
    assert epoch_text(event(1), 0.75) == (
        "loss 0.5000, overall_acc 0.700 (best 0.750), lr 1.00e-04, 32 windows/s, 30 s left; epoch"
    )
    second = event(3, leg=2, legs=3, best=True)
    assert "(best)," in epoch_text(second, 0.7) and "50 s left" in epoch_text(second, 0.7)
    assert training_text(second) == "training 2 of 3, rate 0.0001" and training_text(event(1)) == "training"
    frozen = epoch_text(event(1, epoch=epoch(1, value=-2.5, encoder=0.0), metric="neg_rmse"), None)
    assert "rmse 2.500," in frozen and "encoder frozen" in frozen and "at least 30 s left" in frozen


def test_the_progress_of_a_long_run_is_not_a_line_per_epoch(capsys) -> None:
    watch = Watch(Console())
    for number in range(1, 51):
        watch.show(event(number, epochs=50))
    watch.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["1 of 50", "50 of 50"]


def report(**changes: Any) -> TrainReport:
    leg = Leg(lr=1e-4, epochs=(epoch(1), epoch(2)), best_epoch=2, best_value=-20.0, stopped=False)
    score = Score(name="fine-tuned", value=-20.25, low=-22.0, high=-19.0)
    base = TrainReport(
        out="runs/my fields",
        kind="regression",
        class_names=(),
        field="height",
        data="fields",
        model="v1.2-tiny",
        demo=False,
        recipe="full",
        decoder="linear",
        metric="neg_rmse",
        higher_is_better=True,
        windows={"train": 10, "val": 3, "test": 4},
        labelled={"train": 10, "val": 3, "test": 4},
        parameters=6_250_000,
        legs=(leg, replace(leg, lr=1e-3, best_value=float("nan"), stopped=True)),
        lr=1e-4,
        best_epoch=2,
        val=score,
        test=score,
        baselines=(Score(name="kNN", value=float("nan"), low=None, high=None),),
        judged_on="test",
        confusion=None,
        seconds=120.0,
        samples_per_s=12.3,
        notes=(),
        warnings=(),
        settings={},
        command="olmoearth finetune",
    )
    return replace(base, **changes)


def test_the_report_on_the_terminal_has_the_comparison_and_the_sweep() -> None:
    text = report_text(report())
    assert "v1.2-tiny fine-tuned: rmse 20.250 (95 % interval 19.000 to 22.000) on the test windows" in text
    assert re.search(r"fine-tuned +20\.250 +19\.000 to 22\.000", text) and re.search(r"kNN +- +-", text)
    assert re.search(r"0\.0001 \(kept\) +20\.000 +2 +2\n0\.001 +- +2 +2 \(stopped early\)", text)
    assert "flatter" not in text and "nan" not in text
    assert "figures flatter" in report_text(report(test=None, judged_on="val"))
    assert "nothing to do" in report_text(report(unchanged=True))


def test_classes_are_listed_with_their_scores() -> None:
    text = report_text(report(kind="classification", class_names=("a", "b"), confusion=((3, 1), (0, 4)), metric="miou"))
    assert re.search(r"a +4 +1\.000 +0\.750 +0\.857\nb +4 +0\.800 +1\.000 +0\.889", text)


def test_the_next_command_can_be_typed() -> None:
    assert next_text(report(), "p.html").splitlines() == [
        "checkpoint: runs/my fields",
        "report: p.html",
        "next: olmoearth predict --model 'runs/my fields' --aoi region.geojson",
    ]


def test_the_plan_says_task_windows_steps_and_time() -> None:
    figures = {
        **{"kind": "segmentation", "field": "crop", "class_names": ["a", "b"], "metric": "overall_acc"},
        **{"windows": {"train": 24, "val": 4, "test": 0}, "window_px": 64, "patch_px": 4, "periods": 12},
        **{"modalities": ["sentinel2_l2a"], "bytes_to_read": 2_000_000_000, "groups_to_cut": 3, "model": "v1.2-tiny"},
        **{"demo": False, "parameters": 6_200_000, "recipe": "full", "trainings": 3, "epochs": 50, "batch_size": 8},
        **{"steps": 450, "step_s": 1.25, "seconds": 600.0, "device": "cpu", "out": "runs/x"},
    }
    text = plan_text(figures)
    for part in (
        "segmentation of crop, 2 classes; chosen by overall_acc",
        "24 training, 4 validation, 0 test; 64 px, 4 px patches, 12 periods",
        "about 2 GB (decoded) in 3 groups",
        "450 of 8 windows (3 x 50 epochs)",
        "about 10 min",
    ):
        assert part in text, part
    assert "to read" not in plan_text({**figures, "bytes_to_read": 0})
