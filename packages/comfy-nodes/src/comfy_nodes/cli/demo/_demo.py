"""`torchspan demo`: the whole way of a model, from its file's header to a streamed run that is checked."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import alloc_spec
from alloc_spec import AllocationSpec, AllocResolveError, AllocSpecError, human_seconds
from block_discovery import BlockTree
from comfy_nodes.cli._exit import CommandError, ExitCode, exits_with
from comfy_nodes.cli._output import contents, heading, percent_error, table
from comfy_nodes.cli._parser import POLICIES
from comfy_nodes.cli._source import read_model
from comfy_nodes.cli.demo._file import DemoFile, gguf_file, safetensors_file
from comfy_nodes.cli.demo._model import DemoConfig, DemoTransformer, model_of, random_weights
from comfy_nodes.cli.demo._run import Run, denoise, largest_difference, one_core_for_the_link
from device_placement import (
    Device,
    EmulatedBackend,
    Estimate,
    Hardware,
    Link,
    PlacementError,
    PlacementPlan,
    PlacementStats,
    place,
    plan,
    predict,
    render_svg,
    render_table,
    render_timeline_svg,
)

COMPUTE = "emulated:0"
DONOR = "cpu"
MIB = 1 << 20
SEED = 0
PARALLEL_TOLERANCE = 1e-6
"""Relative difference that the order of float32 sums explains, and that no mistake in splitting stays below."""
STEADY = 0.05
"""Relative change of the same measurement up to which the machine counts as steady."""


def run(options: argparse.Namespace) -> ExitCode:
    """Run the demo.

    Raises:
        CommandError: the allocation cannot be read (2) or kept (1), or the placed model computed something else (1).
    """
    with exits_with(ExitCode.USAGE, AllocSpecError):
        spec = alloc_spec.parse(f"{COMPUTE},25%;{DONOR},*" if options.spec is None else options.spec)
    with exits_with(ExitCode.REFUSED, OSError):
        folder = Path(tempfile.mkdtemp(prefix="torchspan-demo-") if options.out is None else options.out)
        folder.mkdir(parents=True, exist_ok=True)
    file = safetensors_file() if options.gguf is None else gguf_file(options.gguf)
    checkpoint = folder / f"demo{file.suffix}"
    try:
        with one_core_for_the_link():
            return _demonstrate(options, spec, file, checkpoint)
    finally:
        if checkpoint.is_file() and not options.keep_model:
            checkpoint.unlink()
        if options.out is None and not any(folder.iterdir()):
            folder.rmdir()  # refused before there was anything to keep


def _demonstrate(options: argparse.Namespace, spec: AllocationSpec, file: DemoFile, checkpoint: Path) -> ExitCode:
    config = DemoConfig(blocks=options.blocks)
    tree = _write_and_discover(file, checkpoint, config)
    machine = _machine(tree)
    placement = _plan(tree, spec, machine, options)
    print(heading("4. The unplaced model, for comparison"))
    model = file.load(checkpoint)
    reference = denoise(model, model.config, steps=options.steps, seed=SEED, title="unplaced ")
    machine = _linked(machine, placement, reference.steady_seconds, options.link)
    estimate = _predict(tree, spec, machine, placement, reference.steady_seconds)
    placed, stats = _run_placed(model, placement, machine, options)
    # Taken off again, the model must be the old one, and its time shows how steady this machine is.
    after = denoise(model, model.config, steps=options.steps, seed=SEED, title="taken off")
    difference = max(largest_difference(run.latent, reference.latent) for run in (after, placed))
    _report(estimate, reference, placed, after, stats)
    print(f"output difference to the unplaced model: {difference}")
    unexplained = _explain_quantization(file, checkpoint, reference, config, options.steps)
    parallel = _on_workers(file, checkpoint, reference, config, options.workers)
    _write(checkpoint.parent, placement, estimate, pictures=not options.no_svg)
    if difference != 0.0:
        raise CommandError(
            f"the placed model computed something else than the unplaced one: largest difference {difference}; "
            "this is a defect of torchspan, please report it with the output above"
        )
    if unexplained != 0.0:
        raise CommandError(
            "the quantised model computed something else than an ordinary one with its weights dequantised: largest "
            f"difference {unexplained}; this is a defect of torchspan, please report it with the output above"
        )
    if parallel > PARALLEL_TOLERANCE:
        raise CommandError(
            f"the workers computed something else than one process: relative difference {parallel:.1e}, and at most "
            f"{PARALLEL_TOLERANCE:.0e} is rounding; this is a defect of torchspan, please report it with the output "
            "above"
        )
    return ExitCode.OK


def _write_and_discover(file: DemoFile, checkpoint: Path, config: DemoConfig) -> BlockTree:
    print(heading("1. A model in a file"))
    with exits_with(ExitCode.REFUSED, OSError):
        file_bytes = file.write(checkpoint, config, SEED)
    print(
        f"{checkpoint}: a diffusion transformer of {config.blocks} blocks, {file_bytes / MIB:.0f} MiB, {file.contents}"
    )
    print(heading("2. Its blocks, from the header alone"))
    began = time.perf_counter()
    tree, _ = read_model(checkpoint, None)
    seconds = time.perf_counter() - began
    print(f"{contents(tree)}; found in {human_seconds(seconds)}, no weight was read")
    return tree


def _machine(tree: BlockTree) -> Hardware:
    """An emulated accelerator with room for half of the model, beside the machine's own memory."""
    half, twice = tree.size_bytes // 2, 2 * tree.size_bytes
    return Hardware(
        compute=COMPUTE,
        devices=(
            Device(name=COMPUTE, total_bytes=half, free_bytes=half, label="emulated, room for half of the model"),
            Device(name=DONOR, total_bytes=twice, free_bytes=twice, label="the memory of this machine"),
        ),
    )


def _plan(tree: BlockTree, spec: AllocationSpec, machine: Hardware, options: argparse.Namespace) -> PlacementPlan:
    print(heading("3. An allocation, and the plan that keeps it"))
    print(alloc_spec.explain(spec), end="\n\n")
    with exits_with(ExitCode.USAGE, AllocSpecError), exits_with(ExitCode.REFUSED, AllocResolveError, PlacementError):
        placement = plan(tree, spec, machine, policy=options.policy, slots=options.slots)
    print(render_table(placement, machine))
    return placement


def _linked(
    machine: Hardware, placement: PlacementPlan, compute_seconds: float, asked_gb_per_second: float | None
) -> Hardware:
    """Add the emulated link; by default one on which transfers take as long as the computing, the hardest to hide."""
    fitted = max(placement.streamed_bytes, MIB) / compute_seconds / 1e9
    rate = fitted if asked_gb_per_second is None else asked_gb_per_second
    return replace(machine, links=(Link(source=DONOR, target=COMPUTE, gb_per_second=rate),))


def _predict(
    tree: BlockTree, spec: AllocationSpec, machine: Hardware, placement: PlacementPlan, compute_seconds: float
) -> Estimate:
    (link,) = machine.links
    print(heading("5. The prediction"))
    print(
        f"a pass computes for {human_seconds(compute_seconds)}; its {placement.streamed_bytes / MIB:.1f} MiB that live "
        f"elsewhere come over an emulated link of {link.gb_per_second:.2f} GB/s\n"
    )
    rows = []
    for policy in POLICIES:
        chosen = "this plan" if policy == placement.policy else ""
        try:
            other = plan(tree, spec, machine, policy=policy, slots=placement.slots)
        except PlacementError:
            rows.append([policy, chosen, "does not fit", "", ""])
            continue
        ahead = predict(other, machine, compute_seconds=compute_seconds)
        in_turn = predict(other, machine, compute_seconds=compute_seconds, overlap=False)
        seconds = [human_seconds(estimate.seconds or 0.0) for estimate in (ahead, in_turn)]
        rows.append([policy, chosen, *seconds, f"{other.compute_peak_bytes / MIB:.1f}"])
    print(table(["policy", "", "a pass, streamed ahead", "fetched in turn", "MiB on the device"], rows, left=2))
    return predict(placement, machine, compute_seconds=compute_seconds)


def _run_placed(
    model: DemoTransformer, placement: PlacementPlan, machine: Hardware, options: argparse.Namespace
) -> tuple[Run, PlacementStats]:
    print(heading("6. The model, placed and streamed"))
    backend = EmulatedBackend(machine.links, capacities={device.name: device.total_bytes for device in machine.devices})
    with exits_with(ExitCode.REFUSED, PlacementError), place(model, placement, backend=backend) as handle:
        placed = denoise(model, model.config, steps=options.steps, seed=SEED, title="placed   ")
        return placed, handle.stats()


def _report(estimate: Estimate, before: Run, placed: Run, after: Run, stats: PlacementStats) -> None:
    print(heading("7. What came out"))
    predicted = estimate.seconds or 0.0
    measured = placed.steady_seconds
    rows = [
        ["a pass", human_seconds(predicted), human_seconds(measured), percent_error(predicted, measured)],
        [
            "against the unplaced model",
            f"{predicted / before.steady_seconds:.2f} x",
            f"{measured / before.steady_seconds:.2f} x",
            "",
        ],
    ]
    print(table(["", "predicted", "measured", "error"], rows))
    unplaced = [human_seconds(run.steady_seconds) for run in (before, after)]
    drift = after.steady_seconds / before.steady_seconds - 1
    advice = "; the machine is busy with something else, so take the error with care" if abs(drift) > STEADY else ""
    print(f"\na pass of the unplaced model took {unplaced[0]} before and {unplaced[1]} afterwards{advice}")
    copied = sum(stats.copied_bytes.values()) / MIB
    held = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in stats.held_bytes.items())
    print(f"{stats.copies} copies brought {copied:.0f} MiB in {len(placed.pass_seconds)} steps; weights held: {held}")


def _explain_quantization(file: DemoFile, checkpoint: Path, reference: Run, config: DemoConfig, steps: int) -> float:
    """Show that a quantised model differs from the original by its quantisation and by nothing else.

    Returns:
        What the quantisation does not explain: the difference to an ordinary model with the dequantised weights; 0.0
        where nothing is quantised.
    """
    if file.load_dense is None:
        return 0.0
    dense = denoise(file.load_dense(checkpoint), config, steps=steps, seed=SEED, title="dequantised")
    original = model_of(config, random_weights(config, seed=SEED))
    exact = denoise(original, config, steps=steps, seed=SEED, title="original   ")
    unexplained = largest_difference(reference.latent, dense.latent)
    error = largest_difference(reference.latent, exact.latent)
    share = error / exact.latent.abs().max().item()
    print(f"output difference to an ordinary model with the dequantised weights: {unexplained}")
    print(
        f"output difference to the original model: {error:.3g}, {100 * share:.2f} % of its largest value: quantisation"
    )
    return unexplained


def _on_workers(file: DemoFile, checkpoint: Path, reference: Run, config: DemoConfig, workers: int) -> float:
    """Run the model on several processes.

    Returns:
        The relative difference to one process; 0.0 where this part is left out, which is said.
    """
    print(heading("8. Several workers, one copy of the weights"))
    if not workers:
        print("left out, as --workers 0 asks for")
    elif file.load_dense is not None:
        print("left out: the workers of this demo read safetensors; run it without --gguf")
    elif importlib.util.find_spec("ray_parallel") is None:
        print('left out: ray-parallel is not installed; pip install "comfy-nodes[ray]" adds it')
    else:
        from comfy_nodes.cli.demo._workers import run_on_workers

        return run_on_workers(checkpoint, config, reference, seed=SEED, workers=workers)
    return 0.0


def _write(folder: Path, placement: PlacementPlan, estimate: Estimate, *, pictures: bool) -> None:
    files = {"plan.json": placement.to_json(indent=2)}
    if pictures:
        files |= {"placement.svg": render_svg(placement), "timeline.svg": render_timeline_svg(estimate)}
    print(heading("9. To keep"))
    with exits_with(ExitCode.REFUSED, OSError):
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
            print(folder / name)
