"""What it costs that every linear model verifies itself: its share of the pass (recording and product), run in turn.

    python benchmarks/verification.py --output benchmarks/results/0.1.0/NAME.json

The product down to the inputs is taken with and without the sum over the constants, on one recorded network.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
import torchvision
from tqdm import tqdm

import relupath
from cost import machine, timed

NETWORKS = ("vgg16", "resnet50", "convnext_tiny", "vit_b_16", "squeezenet1_0", "mobilenet_v3_small")


def share(name: str, batch: int, repeats: int) -> dict[str, object]:
    """The verification's share of one pass over one network: median, and the middle half of the runs."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torchvision.models.get_model(name, weights=None).eval().to(device)
    x = torch.randn(batch, 3, 224, 224, device=device)
    frozen = relupath.freeze(model, x)
    cotangents = {frozen.top: frozen.functional(3).gradient}
    shares = []
    for repeat in range(-1, repeats):
        recording = timed(relupath.freeze, model, x)
        plain = timed(frozen.vjp, cotangents, frozen.inputs)
        verified = timed(frozen.to_inputs, cotangents)
        plain = (plain + timed(frozen.vjp, cotangents, frozen.inputs)) / 2
        if repeat >= 0:
            shares.append((verified - plain) / (recording + plain))
    low, median, high = statistics.quantiles(shares, n=4)
    return {
        "network": name,
        "batch": batch,
        "constants": len(frozen.sources),
        "share": median,
        "quarter": low,
        "three quarters": high,
    }


def main() -> None:
    """Measure every network at batch 1 and 8; print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for name in tqdm(options.networks, file=sys.stderr):
        for batch in options.batches:
            rows.append(share(name, batch, options.repeats))
            print("{network:<20}{batch:>4}{constants:>6} constants{share:>8.3f} of the pass".format(**rows[-1]))
    if options.output:
        options.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
