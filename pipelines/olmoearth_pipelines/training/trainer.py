"""The model on its way through the steps: weights, moments, and what must be the same after a resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from olmoearth_cli.core.nn.attention import Block
from olmoearth_cli.core.optimizer import adamw, take_step
from olmoearth_cli.core.pretrain_step import PretrainBatch, PretrainModel, accumulate, fresh_model
from olmoearth_cli.core.pretrain_weights import load_published
from olmoearth_cli.errors import InputError, OutputError, RunError
from olmoearth_pipelines.samples.order import epoch_order, share_of_rank
from olmoearth_pipelines.training import checkpoint
from olmoearth_pipelines.training.devices import Team
from olmoearth_pipelines.training.flops import sequence_tokens, step_flops
from olmoearth_pipelines.training.setup import Setup
from olmoearth_pipelines.training.watch import GradientWatch

SHOWN_IDS = 8
"""Sample ids in a message; the log has them all."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step, as all processes together took it."""

    losses: dict[str, float]
    """`loss`, `tokens`, `contrast` and one `tokens/<modality>` each."""
    lr: float
    """Learning rate."""
    norm: float
    """Of the gradient before clipping."""
    tokens: int
    """Of the crops, over all processes."""
    flops: float
    """Done by this process."""
    waited_s: float
    """In which this process waited for data."""


class StepError(RunError):
    """A step after which it makes no sense to go on."""

    def __init__(self, step: int, what: str, samples: list[int], epoch: int, last: Path | None) -> None:
        kept = f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."
        super().__init__(
            f"step {step} (epoch {epoch}): {what}. Samples of the batch: {_some(samples)} (log.jsonl has all). {kept} "
            "Look at these samples, or train with a lower --lr or a longer --warmup in another --out."
        )
        self.step, self.what, self.samples = step, what, samples


class Trainer:
    """One process's part of a run."""

    def __init__(self, setup: Setup, team: Team) -> None:
        """Build the model as training starts: fresh, or from given weights.

        Raises:
            ModelError: the given weights belong to another architecture.
        """
        self.setup, self.team = setup, team
        self.model = fresh_model(setup.config, setup.request.seeds[0])
        if setup.weights is not None:
            load_published(self.model, setup.weights)
        self.model.to(team.device).train()
        team.copy_from_first(self.model)
        if setup.request.compile:
            compile_parts(self.model)
        self.optimizer = adamw(self.model, weight_decay=setup.recipe.weight_decay)
        self.watch = GradientWatch()
        self.step = 0

    def take(self, parts: Iterable[PretrainBatch]) -> Step:
        """Take the next step.

        Args:
            parts: its microbatches, read as they are needed.

        Raises:
            StepError: in all processes, where one of them met no number or the gradient explodes.
        """
        step = self.step + 1
        generator = step_generator(self.setup.request.seeds[1], step, self.team.rank)
        count = self.setup.loader.plan.parts
        sums: dict[str, float] = {}
        tokens, flops, waited, began = 0, 0.0, 0.0, time.perf_counter()
        for part in parts:
            waited += time.perf_counter() - began
            losses = self._accumulate(part, generator, step)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value / count
            tokens += sequence_tokens(part)
            flops += step_flops(part, self.setup.config)
            began = time.perf_counter()
        everyone = self.team.gather((sums, tokens))
        mean = self._mean_losses([losses for losses, _ in everyone], step)
        norm = self._move(step, count)
        self.step = step
        return Step(
            losses=mean,
            lr=self.setup.schedule.lr(step),
            norm=norm,
            tokens=sum(each for _, each in everyone),
            flops=flops,
            waited_s=waited,
        )

    def samples_of(self, step: int) -> list[int]:
        """Ids of the samples of a step, over all processes."""
        loader = self.setup.loader
        epoch, batch = loader.position(step - 1)
        plan = loader.plan
        order = epoch_order(self.setup.samples, epoch=epoch, seed=plan.seed, global_batch=plan.global_batch)
        return [int(i) for rank in range(plan.world_size) for i in share_of_rank(order[batch], rank, plan.world_size)]

    def save(self, more: Mapping[str, Any]) -> Path:
        """Write the checkpoint of the last step taken, and drop old ones."""
        request = self.setup.request
        state = {"data": self.setup.loader.state(self.step), "watch": self.watch.state(), **more, "step": self.step}
        about = {"name": request.model_name, "pretraining": {"step": self.step, **self.setup.settings}}
        path = checkpoint.write_checkpoint(request.out, self.model, self.optimizer, state, about=about)
        checkpoint.rotate(request.out, request.keep)
        return path

    def resume(self, warn: Callable[[str], None]) -> dict[str, Any]:
        """Go on from the newest sound checkpoint, if any; gives back what `save` was told.

        Raises:
            OutputError: all checkpoints are damaged, or not all processes see the same ones.
        """
        out = self.setup.request.out
        state = checkpoint.read_newest(out, self.model, self.optimizer, warn)
        if state is not None:
            self.step = self.setup.loader.resumed(state["data"])
            self.watch = GradientWatch(**state["watch"])
        seen = self.team.gather(self.step)
        if len(set(seen)) > 1:
            raise OutputError(
                f"{out}: the processes find checkpoints of steps {seen}. Put --out on storage they share."
            )
        return state or {}

    def _accumulate(self, part: PretrainBatch, generator: torch.Generator, step: int) -> dict[str, float]:
        """Add a microbatch's gradients."""
        precision = self.setup.request.precision
        objective = self.setup.recipe.objective
        try:
            return accumulate(self.model, part, objective, generator, microbatch=len(part), precision=precision)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"step {step}: a microbatch of {len(part)} samples does not fit the device's memory. Choose a smaller "
                "--microbatch (which changes the contrast's negatives), or --precision bfloat16."
            ) from error
        except ValueError as error:  # what the model refuses to read is the dataset's fault here
            raise InputError(
                f"step {step}: {error} Samples of the batch: {_some(self.samples_of(step))}. Check the units of the "
                "dataset, or leave these samples out."
            ) from error

    def _mean_losses(self, found: list[dict[str, float]], step: int) -> dict[str, float]:
        """Means over the processes; refuses what is no number in any of them."""
        mean = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
        broken = [rank for rank, each in enumerate(found) if not math.isfinite(each["loss"])]
        if broken:
            plan = self.setup.loader.plan
            samples = self.samples_of(step)
            share = plan.global_batch // plan.world_size
            guilty = [i for rank in broken for i in samples[rank * share : (rank + 1) * share]]
            raise self._failed(step, f"the loss is not finite ({mean['loss']})", guilty)
        return mean

    def _move(self, step: int, count: int) -> float:
        """Average the gradients over microbatches and processes, and move the weights; gives the gradient norm."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        for gradient in gradients:
            gradient.div_(count)
        self.team.average(gradients)
        norm, _ = take_step(self.optimizer, self.setup.schedule.lr(step))
        complaint = self.watch.complaint(norm)
        if complaint:
            raise self._failed(step, complaint, self.samples_of(step))
        return norm

    def _failed(self, step: int, what: str, samples: list[int]) -> StepError:
        last = next(iter(checkpoint.checkpoints(self.setup.request.out)), None)
        return StepError(step, what, samples, self.setup.loader.position(step - 1)[0], last)


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Draws dropped bands and layers of one step: the same after any resume."""
    mixed = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))


def compile_parts(model: PretrainModel) -> None:
    """Compile the blocks' MLPs, half of the arithmetic.

    Attention stays as it is: its rotation (complex numbers) is nothing the compiler can write code for, and the
    reference lost it there once (G4). Shapes change from batch to batch, so they are compiled as unknown.
    """
    for stack in (model.encoder.blocks, model.decoder.blocks):
        for block in stack:
            assert isinstance(block, Block)
            block.mlp.compile(dynamic=True)


def _some(samples: list[int]) -> str:
    more = f" and {len(samples) - SHOWN_IDS} more" if len(samples) > SHOWN_IDS else ""
    return ", ".join(map(str, samples[:SHOWN_IDS])) + more
