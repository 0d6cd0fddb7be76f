"""Which torchvision classifiers are explained exactly: float64, random weights, statistics and biases.

    python benchmarks/zoo.py --output docs/zoo.md

For each name: is the frozen output the model's to the bit, how far the bias by difference is from the bias summed over
its sources, how many hidden layers are recorded, and the seconds of recording and checking.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
import torchvision
from torch import nn
from tqdm import tqdm

import relupath
from relupath.errors import RelupathError


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Random biases and batch-norm statistics, in place of the zeros and ones of initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("bias") or name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.double().eval()


def row(name: str) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = randomise(torchvision.models.get_model(name, weights=None, **options), 1)
    side = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    start = time.perf_counter()
    try:
        frozen = relupath.freeze(model, x)
        error = float(frozen.check().error.max())
    except RelupathError as refusal:
        return f"| {name} | refused: {refusal} | | | |"
    seconds = time.perf_counter() - start
    with torch.no_grad():
        same = "yes" if torch.equal(model(x), frozen.output) else "no"
    tested = {operation.name for operation in frozen.operations if operation.kind == "tested"}
    return f"| {name} | {error:.0e} | {same} | {len(frozen.layers)} | {seconds:.1f} |" + (
        f" {tested}" if tested else ""
    )


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=torchvision.models.list_models(module=torchvision.models))
    parser.add_argument("--largest", type=float, default=120, help="leave out models of more million parameters")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows, left_out = [], []
    for name in tqdm(options.names, file=sys.stderr):
        if torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] > options.largest * 1e6:
            left_out.append(name)
            continue
        rows.append(row(name))
        print(rows[-1], flush=True)
    table = [
        "| model | error of completeness | output equal to the bit | hidden layers | seconds |",
        "|---|---|---|---|---|",
    ]
    text = "\n".join(
        ["# torchvision classifiers, explained exactly", "", "Made by `python benchmarks/zoo.py`, float64.", ""]
    )
    text += "\n" + "\n".join([*table, *rows, "", f"Left out for their size: {', '.join(left_out) or 'none'}.", ""])
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
