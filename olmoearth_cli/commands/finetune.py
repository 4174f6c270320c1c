"""`olmoearth finetune`: adapt a model to labels."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olmoearth_cli.commands.finetune_flags import LABELS_ONLY, SAMPLES_TOO, Decoder, Ending, Finetune, RecipeName
from olmoearth_cli.commands.options import command_of, to_catalogs, to_modalities, to_numbers
from olmoearth_cli.console import Console
from olmoearth_cli.errors import InputError, OutputError

if TYPE_CHECKING:
    from olmoearth_pipelines.finetune import FinetuneRequest, Recipe, TrainReport
    from olmoearth_pipelines.windows.request import WindowRequest

EXAMPLE = "Example: olmoearth finetune --llrd 0.65 --labels fields.gpkg --field crop --year 2024"
SOURCES = ("labels", "dataset", "data")


def finetune(flags: Finetune, typed: set[str]) -> None:
    """Run `finetune`."""
    from olmoearth_cli.commands.finetune_text import plan_text

    console = Console(quiet=flags.quiet, as_json=flags.json)
    request = request_of(flags, typed, Path.cwd())
    if flags.labels is None and request.windows is not None:
        console.note(f"labels: {request.windows.labels} (the only ones here)")
    console.note(f"{request.model}; {request.recipe.words}; into {request.out}")
    if flags.plan:
        from olmoearth_pipelines.finetuning.estimate import estimate

        figures = estimate(request, console.note, console.warn)
        console.result(plan_text(figures), figures)
        return
    from olmoearth_pipelines.finetuning.run_folder import PAGE

    page = flags.report or request.out / PAGE
    _check_page(page)
    _train(request, page, console, tensorboard=flags.tensorboard)


command = command_of(Finetune, finetune, last=Ending, tells_typed=True)


def request_of(flags: Finetune, typed: set[str], folder: Path) -> FinetuneRequest:
    """Flags as the road takes them.

    Args:
        flags: of the command.
        typed: fields that were typed; others may come from `olmoearth.toml` and speak of another source.
        folder: where labels are looked for.

    Raises:
        InputError: flags that contradict each other.
    """
    from olmoearth_pipelines.finetune import FinetuneRequest

    source = _source(flags, typed)
    windows = _windows(flags, folder) if source == "labels" else None
    shared: dict[str, Any] = {
        "model": flags.model,
        "modalities": to_modalities(flags.modalities),
        "patch_px": flags.patch_size,
        "recipe": _recipe(flags, typed),
        "baselines": flags.baselines,
        "bootstrap": flags.bootstrap,
        "device": flags.device,
        "overwrite": flags.overwrite,
        "command": " ".join(["olmoearth", *sys.argv[1:]]),
        **({} if flags.workers is None else {"workers": flags.workers}),
    }
    if windows is not None:
        return FinetuneRequest(out=_out(flags, windows.folder.name), windows=windows, **shared)
    if source == "dataset":
        assert flags.dataset is not None
        return FinetuneRequest(out=_out(flags, flags.dataset.resolve().name), dataset=flags.dataset, **shared)
    assert flags.data is not None
    if source == "benchmark":
        task = _benchmark(str(flags.task))
        return FinetuneRequest(out=_out(flags, task), task=task, data=flags.data, **shared)
    label_map = flags.field or "worldcover"
    return FinetuneRequest(
        out=_out(flags, f"{flags.data.resolve().name}-{label_map}"),
        samples=flags.data,
        label_map=label_map,
        window_px=flags.window,
        block_km=flags.block_km,
        **shared,
    )


def _source(flags: Finetune, typed: set[str]) -> str:
    """`labels`, `dataset`, `samples` or `benchmark`; flags that would have no effect there are refused."""
    from olmoearth_pipelines.windows.label_set import KINDS

    given = [name for name in SOURCES if getattr(flags, name) is not None]
    if any(name in typed for name in given):
        given = [name for name in given if name in typed]
    if len(given) > 1:
        raise InputError(f"{' and '.join(map(_flag, given))}: both name training data. Leave one of them out.")
    source = given[0] if given else "labels"
    named = flags.task is not None and flags.task not in KINDS
    if named and source != "data" and "task" in typed:
        raise InputError(
            f"--task {_benchmark(str(flags.task))}: a benchmark brings its own labels. Name its folder with --data, "
            "and neither --labels nor --dataset."
        )
    if source == "data":
        source = "benchmark" if named else "samples"
    idle = {"dataset": (*LABELS_ONLY, *SAMPLES_TOO), "benchmark": (*LABELS_ONLY, *SAMPLES_TOO), "samples": LABELS_ONLY}
    without_effect = [_flag(name) for name in idle.get(source, ()) if name in typed]
    if source in {"dataset", "samples"} and "task" in typed:
        without_effect.insert(0, "--task")
    if without_effect:
        what = {"dataset": "--dataset: these windows are", "benchmark": "--task: a benchmark is"}
        ready = what.get(source, "--data: samples are")
        raise InputError(f"{', '.join(without_effect)} with {ready} cut and labelled already. Leave it out.")
    return source


def _benchmark(name: str) -> str:
    """A benchmark's proper name."""
    from olmoearth_pipelines.tasks.registry import TASKS
    from olmoearth_pipelines.windows.label_set import KINDS

    known = {task.casefold(): task for task in TASKS}
    if name.casefold() not in known:
        close = difflib.get_close_matches(name.casefold(), [*KINDS, *known], n=1)
        hint = f" Did you mean {known.get(close[0], close[0])}?" if close else ""
        raise InputError(
            f"--task {name}: neither a kind of target ({', '.join(KINDS)}) nor a benchmark ({', '.join(TASKS)}).{hint}"
        )
    return known[name.casefold()]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _out(flags: Finetune, name: str) -> Path:
    return flags.out or Path("runs") / name


def _windows(flags: Finetune, folder: Path) -> WindowRequest:
    from olmoearth_pipelines.finetuning.request import PATCH_PX
    from olmoearth_pipelines.probing.sources import find_labels
    from olmoearth_pipelines.windows.label_set import KINDS
    from olmoearth_pipelines.windows.request import WindowRequest

    labels = flags.labels or str(find_labels(folder).relative_to(folder))
    return WindowRequest(
        labels=labels,
        field=flags.field,
        kind=flags.task if flags.task in KINDS else None,
        val_labels=flags.val_labels,
        test_labels=flags.test_labels,
        split=flags.split,
        block_km=flags.block_km,
        catalogs=to_catalogs(flags.catalog),
        modalities=to_modalities(flags.modalities),
        start=flags.start.date() if flags.start else None,
        end=flags.end.date() if flags.end else None,
        year=flags.year,
        periods=flags.periods,
        window_px=flags.window,
        patch_px=flags.patch_size or PATCH_PX,
        max_windows=flags.max_windows,
        seed=flags.seed,
        workers=flags.workers or 1,
        scheduler=flags.scheduler,
        guard=flags.guard.value,
        allow_gaps=flags.allow_gaps,
    )


def _recipe(flags: Finetune, typed: set[str]) -> Recipe:
    from olmoearth_cli.core.finetune.augment import Augmentation
    from olmoearth_pipelines.finetune import Recipe

    _check_recipe(flags, typed)
    varies = flags.augment or flags.time_dropout > 0 or flags.modality_dropout > 0
    return Recipe(
        name=flags.recipe.value if flags.recipe else None,
        llrd=flags.llrd,
        lora=flags.lora,
        frozen_share=flags.frozen_share,
        unfreeze_factor=flags.unfreeze_factor,
        epochs=flags.epochs,
        lrs=_rates(flags, typed),
        decay=flags.decay.value,
        patience=flags.patience,
        batch_size=flags.batch_size,
        accumulate=flags.accumulate,
        weight_decay=flags.weight_decay,
        clip_norm=flags.clip_norm,
        drop_path=flags.drop_path,
        precision=flags.precision.value,
        augmentation=Augmentation(
            symmetries=flags.augment, time_dropout=flags.time_dropout, modality_dropout=flags.modality_dropout
        )
        if varies
        else None,
        class_weights=flags.class_weights.value,
        dice=flags.dice,
        error=flags.loss.value,
        decoder=flags.decoder.value,
        hidden=_widths(flags.hidden),
        metric=flags.metric,
        seed=flags.seed,
        cache_features=flags.cache_features,
    )


def _check_recipe(flags: Finetune, typed: set[str]) -> None:
    """Refuse what was typed and would have no effect."""
    starts_frozen = flags.recipe is RecipeName.FROZEN_START or not (flags.recipe or flags.llrd or flags.lora)
    frozen = [_flag(name) for name in ("frozen_share", "unfreeze_factor") if name in typed]
    if frozen and not starts_frozen:
        raise InputError(
            f"{', '.join(frozen)}: only a frozen start looks at that. Add --recipe frozen-start, or leave it out."
        )
    if "hidden" in typed and flags.decoder not in {Decoder.MLP, Decoder.POOLING}:
        raise InputError(
            f"--hidden with --decoder {flags.decoder.value}: it has no hidden layers. Choose mlp or pooling."
        )


def _rates(flags: Finetune, typed: set[str]) -> tuple[float, ...]:
    """Base rates that were asked for; a typed flag beats the other one's default from the file."""
    if flags.sweep is not None and flags.lr is not None and ("lr" in typed) == ("sweep" in typed):
        raise InputError("--lr and --sweep: one rate or several. Leave one of them out.")
    if flags.sweep is None or "lr" in typed:
        return () if flags.lr is None else (flags.lr,)
    name, given, rates = flags.sweep.partition("=")
    if name.strip() != "lr" or not given:
        raise InputError(f"--sweep {flags.sweep}: only the rate is swept, as in --sweep lr=1e-4,5e-4,1e-3.")
    found = to_numbers(rates, flag="--sweep lr=")
    if not found:
        raise InputError("--sweep lr=: names no rate. Give several, as in --sweep lr=1e-4,5e-4,1e-3.")
    return found


def _widths(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in str(text).split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise InputError(f"--hidden {text}: give widths of 1 or more, such as 512 or 512,256.")
    return tuple(map(int, words))


def _check_page(path: Path) -> None:
    """Refuse to write the page over somebody else's file."""
    from olmoearth_pipelines.finetuning.report_html import is_page

    if path.exists() and not (path.is_file() and is_page(path)):
        raise OutputError(f"--report {path}: is there and is no page of `olmoearth finetune`. Choose another name.")


def _train(request: FinetuneRequest, page: Path, console: Console, *, tensorboard: bool) -> None:
    from olmoearth_cli.commands.finetune_text import Watch, report_text
    from olmoearth_pipelines.finetune import EpochDone, Shown, TrainReport, run
    from olmoearth_pipelines.finetuning.board import Board

    board = Board(request.out) if tensorboard else None
    watch = Watch(console)
    report: TrainReport | None = None
    shown: list[Shown] = []
    try:
        for step in run(request, watch.note, watch.warn):
            if isinstance(step, TrainReport):
                report = step
            elif isinstance(step, Shown):
                shown.append(step)
            else:
                watch.show(step)
                if board is not None and isinstance(step, EpochDone):
                    board.log(step)
    finally:
        watch.close()
        if board is not None:
            board.close()
    assert report is not None
    console.note(report_text(report))
    _finish(report, shown, page, console)


def _finish(report: TrainReport, shown: list[Any], page: Path, console: Console) -> None:
    from olmoearth_cli.commands.finetune_text import next_text
    from olmoearth_pipelines.finetuning.report_html import write_page
    from olmoearth_pipelines.finetuning.run_folder import to_json
    from olmoearth_pipelines.finetuning.samples import read_samples

    if report.demo:
        console.warn("DEMO WEIGHTS: training began with random weights; the figures show the road, not OlmoEarth")
    if not (report.unchanged and page.exists()):
        write_page(page, report, read_samples(Path(report.out)) if report.unchanged else shown)
    console.note(next_text(report, str(page)))
    console.result(report.out, {**to_json(report), "page": str(page)})
