"""Trains the network of the creatures on rendered scenes and measures it on unseen ones.

`python training/creatures.py` writes the weights to `src/relupath/creatures.safetensors` and the record of the training
to `training/creatures.json`. The scenes are rendered anew each time, or kept in the folder given by `--cache`.
Where other work shares the processor, set `OMP_WAIT_POLICY=PASSIVE`: threads that wait for each other then do not spin.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from relupath.creatures import CLASSES, FIRST_UNSEEN_SEED, MEAN, STD, draw, network

ROOT = Path(__file__).resolve().parents[1]
Images = UInt8[Tensor, "scenes 3 96 96"]
Labels = Int64[Tensor, " scenes"]


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=8_000, help="training scenes (default: %(default)s)")
    parser.add_argument("--unseen", type=int, default=4_000, help="scenes of the measurement (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the scenes (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="scenes of one step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="largest learning rate (default: %(default)s)")
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=0.1, help="input noise, deviations (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes and threads (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder that keeps the rendered scenes (default: none)")
    parser.add_argument("--weights", type=Path, default=ROOT / "src/relupath/creatures.safetensors")
    parser.add_argument("--record", type=Path, default=ROOT / "training/creatures.json")
    return parser.parse_args()


def scene(seed: int) -> tuple[UInt8[np.ndarray, "3 96 96"], int]:
    """The picture of a seed, channels first, and its class."""
    drawn = draw(seed)
    return drawn.image.transpose(2, 0, 1), drawn.label


def render(first: int, count: int, workers: int, cache: Path) -> tuple[Images, Labels]:
    """The scenes of the seeds from `first` on, from the cache if they are there."""
    kept = cache / f"creatures-{first}-{count}.npz"
    if not kept.exists():
        os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers only: numpy must not add threads to their processes
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            drawn = pool.imap(scene, range(first, first + count), chunksize=100)
            images, labels = zip(*tqdm(drawn, total=count, desc="render", unit="scene"), strict=True)
        np.savez(kept, images=np.stack(images), labels=np.array(labels, dtype=np.int64))
    with np.load(kept) as stored:
        return torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"])


def normalised(images: Images) -> Float[Tensor, "scenes 3 96 96"]:
    """What `relupath.creatures.preprocess` does, for many pictures."""
    return (images / 255 - MEAN) / STD


def initialise(model: nn.Module) -> None:
    """Draws weights that keep the variance through the ReLU layers: the default ones shrink it until nothing is learnt.

    Source: He et al., Delving deep into rectifiers, 2015, section 2.2.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def batches(labels: Labels, size: int) -> Iterator[Int64[Tensor, " batch"]]:
    """The indices of the scenes in random order, in full batches."""
    order = torch.randperm(len(labels))
    yield from order[: len(order) // size * size].split(size)


def train(model: nn.Module, images: Images, labels: Labels, args: argparse.Namespace) -> list[float]:
    """Trains the model in place, with noise and mirrored pictures.

    Returns:
        The mean loss of each epoch.
    """
    steps = len(labels) // args.batch
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=args.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.rate, epochs=args.epochs, steps_per_epoch=steps)
    losses = []
    model.train()
    for epoch in range(args.epochs):
        total = 0.0
        for index in tqdm(batches(labels, args.batch), total=steps, desc=f"epoch {epoch + 1}/{args.epochs}"):
            x = normalised(images[index])
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(-1))
            x = x + args.noise * torch.randn_like(x)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits.float(), labels[index])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
        losses.append(round(total / steps, 5))
        print(f"epoch {epoch + 1}: loss {losses[-1]}", file=sys.stderr)
    return losses


@torch.inference_mode()
def measure(model: nn.Module, images: Images, labels: Labels) -> dict[str, object]:
    """The share of scenes the model gets right: of all, and of each class."""
    model.eval()
    guessed = torch.cat([model(normalised(part)).argmax(1) for part in images.split(250)])
    right = (guessed == labels).double()
    per_class = {name: round(right[labels == k].mean().item(), 4) for k, name in enumerate(CLASSES)}
    return {"scenes": len(labels), "accuracy": round(right.mean().item(), 5), "accuracy_per_class": per_class}


def machine() -> dict[str, object]:
    """The processor and the software, without names of hosts or folders."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"processor": model, "cores": os.cpu_count(), "system": platform.system(), **versions}


def main() -> None:
    """Renders, trains, measures and writes."""
    args = options()
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.workers)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as temporary:
        cache = args.cache or Path(temporary)
        seen = render(0, min(args.scenes, FIRST_UNSEEN_SEED), args.workers, cache)
        unseen = render(FIRST_UNSEEN_SEED, args.unseen, args.workers, cache)
    rendered = time.perf_counter()
    model = network().to(memory_format=torch.channels_last)
    initialise(model)
    losses = train(model, *seen, args)
    measured = measure(model, *unseen)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    metadata = {"classes": ",".join(CLASSES), "accuracy": str(measured["accuracy"]), "seed": str(args.seed)}
    save_file(weights, args.weights, metadata=metadata)
    args.weights.chmod(0o644)
    settings = {name: value for name, value in vars(args).items() if not isinstance(value, Path | None)}
    record = {
        "command": "python training/creatures.py" + " --cache CACHE" * (args.cache is not None),
        "settings": settings,
        "training_seeds": [0, args.scenes],
        "unseen_seeds": [FIRST_UNSEEN_SEED, FIRST_UNSEEN_SEED + args.unseen],
        "parameters": sum(value.numel() for value in weights.values()),
        "unseen": measured,
        "loss_per_epoch": losses,
        "machine": machine(),
        "seconds": {"render": round(rendered - start), "all": round(time.perf_counter() - start)},
    }
    args.record.write_text(json.dumps(record, indent=2) + "\n")
    print(f"accuracy on {args.unseen} unseen scenes: {measured['accuracy']:.2%}")


if __name__ == "__main__":
    main()
