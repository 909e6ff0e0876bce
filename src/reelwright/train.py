"""Recipe -> run directory: one straight loop. The same command again resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reelwright.bundle import DenoisingLoss, Draws, build_bundle, draw, objective_of_step
from reelwright.data.ahead import Ahead
from reelwright.data.buckets import BucketSampler, bucket_cost, micro_batches
from reelwright.data.replacement import ReplacingReader
from reelwright.export import export_final
from reelwright.generate import Compute, decode_latents, fitting_latent_size, sample_latents
from reelwright.heldout import held_out_loss
from reelwright.loading import beginning
from reelwright.prepare import Prepared, open_prepared, prepare
from reelwright.randomness import derive_seed
from reelwright.recipe import Recipe
from reelwright.report.run_page import write_run_page
from reelwright.resume import check_same_run, restore, save_run, settle
from reelwright.run import RunDirectory
from reelwright.signals import stop_signals
from reelwright.training import checkpoint as checkpoints
from reelwright.training.checkpoint import TrainState
from reelwright.training.devices import autocast, make_accelerator, resolve_device
from reelwright.training.ema import EMA
from reelwright.training.freezing import freeze
from reelwright.training.optim import build_optimizer, learning_rate, set_learning_rate
from reelwright.training.tracker import Trackers
from reelwright.types import Bundle, Size, Text, UsageError, UserError
from reelwright.video.sheet import contact_sheet
from reelwright.video.write import write_video

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_SKIPPED_STEPS = 20  # in a row, by the fp16 gradient scaler

OnStep = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How training ended. `interrupted` names the signal that stopped it, after a save."""

    run_dir: Path
    step: int
    interrupted: str | None = None


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass of this process is made of."""

    items: tuple[tuple[int, int], ...]  # (sample, epoch) of the whole step, of all processes
    text: Text
    drawn: Draws
    last: bool  # of its step
    bad: list[int]  # samples that this step found not to read, told with the last


def train(
    recipe: Recipe,
    on_step: OnStep | None = None,
    on_prepare: Callable[[str, int, int], None] = lambda *_: None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train, or go on training, what the recipe says, bringing the cache up to date first.

    Everything a run leaves is in its run directory; the lock on it is held throughout.
    """
    recipe = settle(recipe)
    check_same_run(recipe)
    config = recipe.train
    device = resolve_device(config.device)
    accelerator = make_accelerator(device, config.precision, getattr(recipe.model, "in_turns", False))
    device = accelerator.device
    main = accelerator.is_main_process
    together = config.together
    share = _share(config.batch_size, accelerator.num_processes, together)
    run = RunDirectory.create(recipe.run_dir)
    with run.lock() if main else nullcontext(), stop_signals() as stop, ExitStack() as leaving:
        log = _logger(run, say) if main else (lambda _: None)

        def preparing(stage: str, done: int, total: int) -> None:
            if main:
                on_prepare(stage, done, total)
            if stop:  # a cache may be left at any moment; there is nothing to save yet
                raise KeyboardInterrupt

        for line in prepare(recipe, preparing).lines():  # every process does its share
            log(line)
        prepared = open_prepared(recipe)
        recipe = prepared.recipe  # every `auto` settled
        training, validation = prepared.training, prepared.validation
        steps = config.steps or math.ceil((config.epochs or 0) * len(training) / config.batch_size)
        if main:
            checkpoints.remove_unfinished(run.checkpoints)
            run.write_recipe(recipe.plain())

        # -- the model, its optimizer and what a checkpoint says of them
        bundle = build_bundle(recipe, frozen_text_width=prepared.manifest.about["text_width"])
        resumed = checkpoints.newest_valid(run.checkpoints, log)
        bundle, adapted = beginning(bundle, recipe, fresh=resumed is None)
        fitting_latent_size(bundle, recipe.size, recipe.sampling)  # what samples will need, before hours of training
        loss_module = DenoisingLoss(bundle).to(device)
        trained, parameters = freeze(loss_module, config.freeze, config.train_only)
        optimizer = build_optimizer(loss_module, config)
        ema = EMA(loss_module, config.ema) if config.ema is not None else None
        state = TrainState()
        if resumed is not None:
            state = restore(resumed, recipe, bundle, loss_module, optimizer, ema)
            if state.step < steps:
                log(f"resuming from {resumed.name}")
            if state.best_step is not None and not (run.checkpoints / checkpoints.name_of(state.best_step)).is_dir():
                state.best_step = state.best_loss = None  # a fork takes its origin's newest alone
        if state.data_sha256 not in ("", prepared.data_sha256):
            log("the training clips or captions are not those this run began with: from here on its draws differ")
        state.data_sha256 = prepared.data_sha256
        if main:
            run.rewind(state.step)
        model, optimizer = accelerator.prepare(loss_module, optimizer)
        if state.scaler and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state.scaler)

        sampler = BucketSampler(training.buckets(), config.batch_size, recipe.seed)
        trackers = Trackers(config, run.path, state.step, recipe.plain()) if main else None
        reader = ReplacingReader(training)
        shard = slice(accelerator.process_index, None, accelerator.num_processes)
        wanted = share if config.micro_batch == "auto" else min(config.micro_batch, share)
        costs = {s.size: bucket_cost(s.latent_size, config.micro_batch_power) for s in training.samples.values()}
        micro_batch = micro_batches(costs, wanted, share, together)
        for warning in recipe.warnings:
            log(warning)
        if trained < parameters:
            what = f"LoRA beside {len(adapted)} layers" if adapted else "the others are frozen"
            log(f"{what}: {trained:,} of {parameters:,} parameters train")
        log(
            f"{parameters:,} parameters on {device} in {config.precision}; {len(training)} training samples, "
            f"{len(validation)} held out; {steps} steps; {_batches(config.batch_size, share, micro_batch)}"
        )

        def micro_batches_from(first: int) -> Iterator[MicroBatch]:
            for step in range(first, steps):
                size, items = sampler.batch(step)
                groups = [items[first : first + together] for first in range(0, len(items), together)]
                mine, at_once = [item for group in groups[shard] for item in group], micro_batch[size]
                objective = objective_of_step(bundle, recipe.seed, step)
                for start in range(0, len(mine), at_once):
                    batch = reader.load(mine[start : start + at_once], recipe.seed, config.caption_dropout)
                    last = start + at_once >= len(mine)
                    bad = reader.found_bad() if last else []
                    yield MicroBatch(items, batch.text, draw(batch, objective, recipe.seed, config.mixes), last, bad)

        ahead = leaving.enter_context(Ahead(micro_batches_from(state.step)))

        def record(figures: dict[str, Any]) -> None:
            if main and trackers:
                run.append_metrics({"step": state.step, **figures})
                trackers.write(state.step, figures)

        started, session_seconds, clock = state.step, 0.0, time.perf_counter()
        stopping, skipped = "", 0
        unreadable: set[int] = set()  # samples, of all processes
        while state.step < steps and not stopping:
            # -- one optimizer step over batch_size samples of one bucket
            torch.manual_seed(derive_seed(recipe.seed, "step", state.step, accelerator.process_index))
            rate = learning_rate(config, state.step, steps)
            set_learning_rate(optimizer, rate)
            step_loss = torch.zeros((), device=device)
            model.train()
            last = False
            while not last:
                data = ahead.take()
                drawn, last = data.drawn, data.last
                with nullcontext() if last else accelerator.no_sync(model):
                    with accelerator.autocast():
                        losses = model(
                            drawn.latents.to(device), drawn.noise.to(device), drawn.t.to(device), data.text.to(device),
                            None if drawn.own is None else drawn.own.to(device),
                        )  # fmt: skip
                    # a mean over the samples of the whole step; DDP averages over processes, hence their number
                    part = losses.sum() * (accelerator.num_processes / config.batch_size)
                    accelerator.backward(part)
                step_loss += part.detach()
            for index in _found_by_any(data.bad, accelerator):
                if index not in unreadable:
                    unreadable.add(index)
                    why = reader.why((index, data.items[0][1]), recipe.seed)
                    log(f"{training.samples[index].clip} (sample {index}) cannot be read, another stands in: {why}")
            if len(unreadable) > config.max_bad_fraction * len(training):
                raise UserError(_too_many_bad(recipe, len(unreadable), len(training)))
            norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf) or 0.0)
            loss_value = accelerator.gather(step_loss).mean().item()  # pyright: ignore[reportAttributeAccessIssue]
            if not (math.isfinite(loss_value) and math.isfinite(norm)):
                skipped += 1
                log(f"step {state.step + 1}: loss = {loss_value}, gradient norm = {norm}")
                # fp16's scaler skips such a step by itself and lowers its scale; one that goes on so is lost
                if accelerator.scaler is None or not math.isfinite(loss_value) or skipped > MAX_SKIPPED_STEPS:
                    raise UserError(_non_finite(state.step, [training.samples[i].clip for i, _ in data.items]))
            else:
                skipped = 0
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            if ema is not None:
                ema.update(state.step)
            state.loss_sum += loss_value
            state.loss_count += 1
            elapsed = time.perf_counter() - clock
            session_seconds += elapsed
            state.seconds += elapsed

            # -- figures, held-out loss, samples, checkpoint
            stopping = _first_signal(stop, accelerator)
            done = state.step == steps or bool(stopping)
            if state.step % config.log_every == 0 or state.step == steps:
                speed = (state.step - started) * config.batch_size / session_seconds
                mean_loss = state.loss_sum / state.loss_count
                state.loss_sum, state.loss_count = 0.0, 0
                figures = {
                    "loss": mean_loss,
                    "learning_rate": rate,
                    "grad_norm": norm,
                    "samples_per_second": round(speed, 3),
                    "seconds": round(state.seconds, 3),
                    **({"unreadable_samples": len(unreadable)} if unreadable else {}),
                }
                record(figures)
                if main:
                    run.log(_step_line(figures, device), state.step)
            if on_step and main:
                on_step(state.step, steps, {"loss": loss_value})
            if _due(config.evaluate_every, state.step, steps) and main:
                with ema.applied() if ema else nullcontext(), autocast(device, config.precision):
                    figures = held_out_loss(
                        loss_module, validation if len(validation) else training, device,
                        config.evaluate_samples, config.evaluate_times, config.batch_size,
                    )  # fmt: skip
                record(figures)
                run.log(_held_out_line(figures), state.step)
                if config.track_best and (state.best_loss is None or figures["heldout_loss"] < state.best_loss):
                    state.best_loss, state.best_step = figures["heldout_loss"], state.step
            if (state.step % config.save_every == 0 or done or state.best_step == state.step) and main:
                state.scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
                save_run(run, recipe, state, bundle, loss_module, optimizer, ema)
            sampling_due = _due(config.sample_every, state.step, steps) or state.step == steps
            if sampling_due and main and getattr(bundle.denoiser, "makes_videos", True):
                with ema.applied() if ema else nullcontext():
                    write_samples(run, recipe, bundle, loss_module, prepared, state.step, device)
            clock = time.perf_counter()
            accelerator.wait_for_everyone()

        if trackers:
            trackers.close()
        if main:
            write_run_page(run)
            if state.step >= steps:  # after all else: without room for it, everything else stands
                try:
                    log(f"final model: {export_final(run, prepared)}")
                except UserError as reason:  # the run itself is done and saved
                    log(f"no final model: {reason}")
            if stopping:
                log(f"stopped by {stopping} at step {state.step}, which is saved; the same command goes on")
            elif started >= steps:
                log(_already_finished(recipe, state.step))
            else:
                log(f"done: {state.step} steps in {state.seconds:.0f} s; report: {run.report_path}")
        accelerator.free_memory()
        return Outcome(run.path, state.step, stopping or None)


def write_samples(
    run: RunDirectory,
    recipe: Recipe,
    bundle: Bundle,
    module: DenoisingLoss,
    prepared: Prepared,
    step: int,
    device: torch.device,
) -> None:
    """Videos of the sample prompts with the weights in place, and their contact sheet, into samples/."""
    shown = prepared.sample_conditions(recipe)
    prompts = shown.labels
    compute = Compute(device, recipe.train.precision)
    latent_size = bundle.codec.compression.latent_size(shown.size)
    module.eval()
    with torch.no_grad(), autocast(device, compute.precision):
        cond, uncond = (module.condition(text.to(device)) for text in (shown.cond, shown.uncond))
    latents = sample_latents(bundle, cond, uncond, latent_size, [recipe.seed] * len(prompts), recipe.sampling, compute)
    videos = decode_latents(bundle, latents, replace(compute, offload="model"))  # no room for a codec while training
    name = checkpoints.name_of(step)
    for number, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
        facts = {"prompt": prompt, "seed": recipe.seed, "step": step, **recipe.sampling.plain()}
        write_video(run.sample_path(step, number), video, recipe.data.fps, facts)
    contact_sheet(list(videos), prompts, run.samples / f"{name}.png")


def _step_line(figures: Mapping[str, Any], device: torch.device) -> str:
    """What training.log says every `log_every` steps."""
    line = f"loss {figures['loss']:.4f}  learning rate {figures['learning_rate']:.3g}"
    line += f"  {figures['samples_per_second']:.4g} samples/s"
    if device.type == "cuda":
        line += f"  {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB at most"
    return line


def _held_out_line(figures: Mapping[str, Any]) -> str:
    clips, low, high = figures["heldout_clips"], figures["heldout_low"], figures["heldout_high"]
    name = "loss at fixed noise on training clips" if figures["heldout_split"] == "train" else "held-out loss"
    interval = f" [{low:.4f}, {high:.4f}]" if clips > 1 else ""
    return f"{name} {figures['heldout_loss']:.4f}{interval}  {clips} clips"


def _already_finished(recipe: Recipe, step: int) -> str:
    name = "steps" if recipe.train.steps else "epochs"
    return f"{recipe.run_dir} is already finished at step {step}; nothing to do (train.{name}=... beyond that to go on)"


def _non_finite(step: int, clips: Sequence[str]) -> str:
    return (
        f"step {step + 1} gave a loss or gradient that is not finite; the weights were not changed and nothing was "
        f"saved. Clips of this step: {', '.join(dict.fromkeys(clips))}. The draws are fixed, so the same command meets "
        "it again. Ways out, from the last checkpoint: a lower train.learning_rate or train.precision=fp32 with "
        "--fork NEW_DIR; or mend the clips"
    )


def _first_signal(received: list[str], accelerator: Accelerator) -> str:
    """The signal that stops the run, '' for none; all processes agree, whichever of them received it."""
    if accelerator.num_processes > 1:
        flag = torch.tensor([bool(received)], dtype=torch.float32, device=accelerator.device)
        if accelerator.gather(flag).any() and not received:  # pyright: ignore[reportAttributeAccessIssue]
            return "a signal to another process"
    return received[0] if received else ""


def _due(every: int, step: int, steps: int) -> bool:
    return bool(every) and (step % every == 0 or step == steps)


def _share(batch_size: int, processes: int, together: int) -> int:
    """Samples of a step that fall to each process, so many of them mixed together."""
    if batch_size % (unit := processes * together):
        told = f"the {processes} processes" + (f" times {together}, as train.mixup is set" if together > 1 else "")
        raise UsageError(
            f"train.batch_size = {batch_size}: must be a multiple of {told}; "
            f"use {batch_size // unit * unit or unit} or {(batch_size // unit + 1) * unit}"
        )
    return batch_size // processes


def _batches(batch_size: int, share: int, micro_batch: Mapping[Size, int]) -> str:
    """How a step is made up, in words."""
    if len(set(micro_batch.values())) == 1:
        at_once = next(iter(micro_batch.values()))
        made_of = f"micro-batch {at_once} x {math.ceil(share / at_once)} accumulated"
    else:
        by_size = ", ".join(f"{at_once} ({size})" for size, at_once in sorted(micro_batch.items()))
        made_of = f"micro-batches of {by_size}, accumulated"
    return f"batch {batch_size} = {batch_size // share} processes x {made_of}"


def _found_by_any(found: list[int], accelerator: Accelerator) -> list[int]:
    """What every process found, joined: the same list in all of them, ascending."""
    if accelerator.num_processes == 1:
        return sorted(found)
    counts = accelerator.gather(torch.tensor([len(found)], device=accelerator.device))
    most = int(counts.max())  # pyright: ignore[reportAttributeAccessIssue]
    if not most:
        return []
    padded = torch.tensor(found + [-1] * (most - len(found)), device=accelerator.device)
    everything = accelerator.gather(padded).tolist()  # pyright: ignore[reportAttributeAccessIssue]
    return sorted({index for index in everything if index >= 0})


def _too_many_bad(recipe: Recipe, bad: int, samples: int) -> str:
    return (
        f"{bad} of {samples} training samples cannot be read ({bad / samples:.1%}), more than train.max_bad_fraction = "
        f"{recipe.train.max_bad_fraction:g} allows; they are named above. Delete the damaged files and run "
        "`reelwright prepare` again, which makes only what is missing; or raise train.max_bad_fraction"
    )


def _logger(run: RunDirectory, say: Callable[[str], None]) -> Callable[[str], None]:
    def log(message: str) -> None:
        run.log(message)
        say(message)

    return log
