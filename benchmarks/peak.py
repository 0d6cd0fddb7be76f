"""How much of the machine's arithmetic the library's jobs use, how much memory they take, and what they spend time on.

    python benchmarks/peak.py --output benchmarks/results/0.1.0/NAME.json

The arithmetic of a job is what torch's own counter (``FlopCounterMode``) sees in its convolutions and matrix products;
the machine's is the median of large matrix products (2048 x 2048), run just before and after the job in the same
process. Memory is the largest sum of allocations alive at once, without the weights. The profile gives the operations
with the largest share of the time spent in operations. Networks have random weights; input is 224 x 224.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import relupath
import selective
from cost import DEVICE, machine, peak, timed
from relupath import Path as UnitPath
from relupath._search import Search

CLASS = 3
CONVOLUTIONS = {"conv3_3": "features.15", "conv4_3": "features.22", "conv5_3": "features.29"}
CLOCK = "device" if DEVICE == "cuda" else "cpu"
Job = Callable[[], object]


def network(name: str) -> torch.nn.Module:
    """A classifier of torchvision, random weights."""
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval().to(DEVICE)


def jobs(names: list[str]) -> dict[str, Job]:
    """The jobs by name; what they need is made here, outside the clock."""
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    found: dict[str, Job] = {}
    for network_name in ("vgg16", "resnet50", "convnext_tiny", "squeezenet1_0"):
        model = network(network_name)
        found[f"linear model, {network_name}"] = lambda model=model: relupath.linear_model(
            relupath.freeze(model, x), relupath.logit(CLASS)
        )
    vgg = network("vgg16")
    frozen = relupath.freeze(vgg, x)
    ten_classes = selective.network()
    for said, name in CONVOLUTIONS.items():
        for kind, paths in {"neurons": neurons(frozen, name), "channels": channels(frozen, name)}.items():
            found[f"64 {kind} of {said}, vgg16"] = lambda paths=paths: relupath.linear_models(frozen, paths, CLASS)
    found["Greedy(), vgg16"] = lambda: search(vgg, x, relupath.Greedy())
    found["Selective(1024), vgg16 with ten classes"] = lambda: search(ten_classes, x, relupath.Selective(1024))
    found["tree node, 12 channels of conv5_3, vgg16"] = lambda: expanded(frozen)
    return {name: job for name, job in found.items() if any(part in name for part in names)} if names else found


def neurons(frozen: relupath.Frozen, name: str) -> list[UnitPath]:
    """Paths through 64 neurons drawn among those that add something to the target."""
    layer = frozen.layer(name)
    (v,) = frozen.vjp({frozen.top: frozen.functional(CLASS).gradient}, [layer])
    live = (v * layer.output)[0].nonzero().cpu()
    some = live[torch.randperm(len(live), generator=torch.Generator().manual_seed(0))[:64]].tolist()
    return [UnitPath.of([(name, tuple(unit))]) for unit in some]


def channels(frozen: relupath.Frozen, name: str) -> list[UnitPath]:
    """Paths through 64 channels drawn at random."""
    count = frozen.layer(name).shape[0]
    some = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:64].tolist()
    return [UnitPath.of([(name, (channel, None, None))]) for channel in some]


def search(model: torch.nn.Module, x: Tensor, strategy: Search) -> object:
    """A search with its model, the recording included."""
    return relupath.find_paths(relupath.freeze(model, x), CLASS, strategy).model


def expanded(frozen: relupath.Frozen) -> object:
    """The children of the root at the highest convolution."""
    layers = list(CONVOLUTIONS.values())
    return relupath.decompose(frozen, CLASS, layers=layers, partition=relupath.channels, width=12).children


def product(n: int = 2048) -> float:
    """Multiply-adds a second of one large matrix product."""
    a, b = torch.randn(2, n, n, device=DEVICE)
    a @ b
    return n**3 / statistics.median(timed(torch.matmul, a, b) for _ in range(5))


def measured(job: Job, repeats: int) -> dict[str, object]:
    """Seconds, multiply-adds, share of the machine's, memory, and the largest shares of time by operation."""
    with FlopCounterMode(display=False) as counter:
        job()
    macs = counter.get_total_flops() / 2
    seconds, shares = [], []
    for _ in range(repeats):
        before = product()
        taken = timed(job)
        seconds.append(taken)
        shares.append(macs / taken / ((before + product()) / 2))
    with torch.profiler.profile() as profile:
        job()
    times = {event.key: getattr(event, f"self_{CLOCK}_time_total") for event in profile.key_averages()}
    most = sorted(times, key=lambda key: -times[key])[:8]
    return {
        "seconds": statistics.median(seconds),
        "multiply_adds": macs,
        "share_of_peak": statistics.median(shares),
        "peak_bytes": peak(job),
        "operations": {key: times[key] / sum(times.values()) for key in most},
    }


def main() -> None:
    """Measure all jobs, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", default=[], help="only jobs whose name contains one of these")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = {}
    print(f"{'job':<44}{'s':>9}{'GMAC':>9}{'of peak':>9}{'MiB':>9}  most time in")
    for name, job in tqdm(jobs(options.jobs).items(), file=sys.stderr):
        row = rows[name] = measured(job, options.repeats)
        most = ", ".join(f"{key.removeprefix('aten::')} {share:.0%}" for key, share in [*row["operations"].items()][:3])
        print(
            f"{name:<44}{row['seconds']:>9.2f}{row['multiply_adds'] / 1e9:>9.1f}{row['share_of_peak']:>9.0%}"
            f"{row['peak_bytes'] / 2**20:>9.0f}  {most}",
            flush=True,
        )
    if options.output:
        report = {"machine": machine(), "repeats": options.repeats, "rows": rows}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
