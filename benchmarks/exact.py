"""What the exact search costs on VGG-16, and what it is spent on.

    python benchmarks/exact.py --output benchmarks/results/0.1.0/NAME.json

The five best one-way paths through all layers, neuron by neuron, at 224 x 224 with random weights: seconds, and a bare
forward and backward pass beside them, by how much the process grew at most, and the functions in which most time is
spent (by Python's own profiler, which slows what it measures; the shares are what counts).
"""

import argparse
import cProfile
import json
import pstats
import resource
from collections import Counter
from pathlib import Path

import torch
import torchvision

import relupath
from cost import DEVICE, bare, machine, timed

CLASS = 3
MOST = 10
"""So many functions are listed."""


def main() -> None:
    """Measure, print, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None).eval().to(DEVICE)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    base = min(timed(bare, model, x, torch.tensor([CLASS], device=DEVICE)) for _ in range(5))

    def search() -> object:
        return relupath.find_paths(relupath.freeze(model, x), CLASS, relupath.Exact(options.paths)).model

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = timed(search)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    with cProfile.Profile() as profile:
        search()
    stats = pstats.Stats(profile)
    times: Counter[str] = Counter()
    for (file, _, name), (_, _, own, _, _) in stats.stats.items():
        times[f"{Path(file).name}:{name}"] += own / stats.total_tt
    shares = dict(times.most_common(MOST))
    print(f"{seconds:.1f} s, {seconds / base:.0f} bare passes, {grown / 2**20:.0f} MiB more than before")
    for key, share in shares.items():
        print(f"{share:>6.0%}  {key}")
    if options.output:
        found = {"paths": options.paths, "seconds": seconds, "bare": base, "grown_bytes": grown, "functions": shares}
        options.output.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
