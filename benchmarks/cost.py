"""What an explanation costs beside one bare forward and backward pass, in one process, run by run in turn.

    python benchmarks/cost.py --output benchmarks/results/0.1.0/NAME.json

The baseline is a forward pass and ``torch.autograd.grad`` of one logit with respect to the input. Every figure is the
median of paired ratios to it. Memory is the largest sum of allocations alive at once during the run, as a ratio: once
without the weights, which no run copies, and once with them.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

import relupath

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def bare(model: nn.Module, x: Tensor, classes: Tensor) -> object:
    """A forward pass and the gradient of one logit a sample."""
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(model(x).gather(1, classes[:, None]).sum(), x)


def linear_model(model: nn.Module, x: Tensor, classes: Tensor) -> object:
    """The exact linear model, weight and bias."""
    return relupath.linear_model(relupath.freeze(model, x), relupath.logit(classes))


def algorithm_1(model: nn.Module, x: Tensor, classes: Tensor) -> object:
    """The greedy path over all layers, with its linear model."""
    found = relupath.find_paths(relupath.freeze(model, x), relupath.logit(classes), relupath.Greedy())
    return found.model


def ratios(model: nn.Module, x: Tensor, classes: Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Median, smallest and largest ratio to the baseline of each candidate, run in turn."""
    candidates = (linear_model, algorithm_1)
    found: dict[str, list[float]] = {c.__name__: [] for c in candidates}
    seconds = []
    for repeat in range(-1, repeats):
        base = timed(bare, model, x, classes)
        times = {c.__name__: timed(c, model, x, classes) for c in candidates}
        if repeat >= 0:
            base = (base + timed(bare, model, x, classes)) / 2
            seconds.append(base)
            for name, value in times.items():
                found[name].append(value / base)
    base_memory = peak(bare, model, x, classes)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    bare_report = {"seconds": statistics.median(seconds), "peak_bytes": base_memory, "weight_bytes": weights}
    report: dict[str, dict[str, float]] = {"bare": bare_report}
    for c in candidates:
        values, memory = found[c.__name__], peak(c, model, x, classes)
        report[c.__name__] = {
            "time": statistics.median(values),
            "time_smallest": min(values),
            "time_largest": max(values),
            "memory": memory / base_memory,
            "memory_with_weights": (memory + weights) / (base_memory + weights),
        }
    return report


def timed(run: Callable[..., object], *arguments: object) -> float:
    """Seconds of one run; what it made is freed outside the clock."""
    synchronise()
    start = time.perf_counter()
    made = run(*arguments)
    synchronise()
    seconds = time.perf_counter() - start
    del made
    return seconds


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(run: Callable[..., object], *arguments: object) -> int:
    """The largest sum of allocations alive at once during a run, in bytes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(*arguments)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(*arguments)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = largest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        largest = max(largest, alive)
    return largest


def machine() -> dict[str, object]:
    """What a reader needs to know about the machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    malloc = {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "GLIBC_"))}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "relupath": relupath.__version__}
    return {"processor": model, "threads": torch.get_num_threads(), "gpu": gpu, **malloc, **versions}


def main() -> None:
    """Run every network at every batch size; print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["vgg16", "resnet50", "convnext_tiny"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.networks:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval().to(DEVICE)
        for batch in tqdm(options.batches, desc=name, file=sys.stderr):
            x = torch.randn(batch, 3, 224, 224, device=DEVICE)
            with torch.no_grad():
                classes = model(x).argmax(1)
            rows.append({"network": name, "batch": batch, **ratios(model, x, classes, options.repeats)})
    print(
        f"{'network':<14}{'batch':>6}{'bare s':>9}{'linear_model':>15}{'memory':>14}{'algorithm 1':>14}{'memory':>14}"
    )
    for row in rows:
        linear, greedy = row["linear_model"], row["algorithm_1"]
        print(
            f"{row['network']:<14}{row['batch']:>6}{row['bare']['seconds']:>9.3f}{linear['time']:>15.2f}"
            f"{linear['memory']:>7.2f} /{linear['memory_with_weights']:>5.2f}"
            f"{greedy['time']:>14.2f}{greedy['memory']:>7.2f} /{greedy['memory_with_weights']:>5.2f}"
        )
    if options.output:
        report = {"machine": machine(), "repeats": options.repeats, "rows": rows}
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
