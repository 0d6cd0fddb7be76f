"""Trains a small head on a VGG-16's features for the classes of an image folder, as the paper does for ten classes.

    python training/vgg16_head.py PHOTOS --backbone vgg16.safetensors --output mine.safetensors
    python training/vgg16_head.py PHOTOS --backbone IMAGENET1K_V1 --output mine.safetensors    # downloads the backbone
    relupath explain photo.jpg --model torchvision/vgg16 --weights mine.safetensors --labels mine.txt

PHOTOS holds a folder of pictures for each class. The convolutions stay as they are; in place of torchvision's head
stand three linear layers, 25088-256-64-classes, with ReLU and dropout between as there. The output is the whole
network's state dict; the class names go to a text file of the same name, the record of the training to a JSON file.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from relupath import files, images, models
from relupath.errors import RelupathError, UsageError

WIDTHS = (256, 64)
Features = Float[Tensor, "pictures looks numbers"]
"""Of every picture as it is, and mirrored."""
Labels = Int64[Tensor, " pictures"]


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="a folder that holds a folder of pictures for each class")
    parser.add_argument(
        "--backbone",
        required=True,
        help="a file with the weights of torchvision's vgg16 (of its head nothing is read); or torchvision's name of "
        "weights, such as IMAGENET1K_V1, which are downloaded; or RANDOM",
    )
    parser.add_argument("--output", type=Path, required=True, help="the network's weights, safetensors")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of each class (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the pictures (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="pictures of one step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate (default: %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.2, help="share of neurons (default: %(default)s)")
    parser.add_argument("--decay", type=float, default=0.01, help="weight decay (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of head, order, dropout, held out (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    return parser.parse_args()


def backbone(given: str, device: str) -> models.Classifier:
    """VGG-16 with weights from a file, of torchvision by their name, or none.

    Raises:
        UsageError: the file is not there, or torchvision has no such weights.
        ModelError: the file's convolutions are not those of VGG-16.
    """
    path = Path(given)
    if not (path.suffix or path.is_file()):
        return models.load(f"torchvision/vgg16@{given}", device=device)
    state, _ = models.read_state(path)
    classifier = models.load("torchvision/vgg16@RANDOM", device=device)
    own = {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
    models.fit(classifier.model.get_submodule("features"), own, given)
    return classifier


def folders(place: Path) -> dict[str, list[Path]]:
    """The pictures of each class, by the name of its folder.

    Raises:
        UsageError: there are less than two folders, or one holds less than two pictures.
    """
    if not place.is_dir():
        raise UsageError(f"the folder {place} is not there: give one that holds a folder of pictures for each class")
    classes = sorted(part for part in place.iterdir() if part.is_dir() and not part.name.startswith("."))
    found = {folder.name: files.pictures([folder]) for folder in classes}
    few = [name for name, some in found.items() if len(some) < 2]
    if len(found) < 2 or few:
        raise UsageError(
            f"{place} must hold a folder of two or more pictures for each of two or more classes; it holds "
            f"{len(found)} folders" + f", of which {', '.join(few)} has one picture" * bool(few)
        )
    return found


@torch.inference_mode()
def features(classifier: models.Classifier, photos: list[Path]) -> Features:
    """What the convolutions give for each picture, as it is and mirrored: the head's input."""
    below = nn.Sequential(*(classifier.model.get_submodule(name) for name in ("features", "avgpool")), nn.Flatten())
    found = []
    for photo in tqdm(photos, desc="features", unit="picture", disable=None):
        x = classifier.prepare(images.read(photo).image)
        found.append(below(torch.stack([x, x.flip(-1)])).cpu())
    return torch.stack(found)


def held_out(labels: Labels, share: float) -> tuple[Labels, Labels]:
    """The positions of the pictures to train on, and of those held out: at least one a class of each."""
    seen, unseen = [], []
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        own = own[torch.randperm(len(own))]
        count = min(max(1, round(share * len(own))), len(own) - 1)
        unseen.append(own[:count])
        seen.append(own[count:])
    return torch.cat(seen), torch.cat(unseen)


def new_head(numbers: int, classes: int, dropout: float) -> nn.Sequential:
    """Three linear layers where torchvision's VGG-16 has its own."""
    first, second = WIDTHS
    parts = [nn.Linear(numbers, first), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    parts += [nn.Linear(first, second), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(second, classes)]
    for layer in parts:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*parts)


def train(head: nn.Sequential, x: Features, labels: Labels, args: argparse.Namespace) -> list[float]:
    """Trains the head in place, each picture mirrored or not.

    Returns:
        The mean loss of each epoch.
    """
    optimiser = torch.optim.AdamW(head.parameters(), lr=args.rate, weight_decay=args.decay)
    losses = []
    head.train()
    for epoch in range(args.epochs):
        total = 0.0
        for some in torch.randperm(len(labels)).split(args.batch):
            look = torch.randint(x.shape[1], (len(some),))
            logits = head(x[some, look].to(args.device))
            loss = nn.functional.cross_entropy(logits, labels[some].to(args.device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(some)
        losses.append(round(total / len(labels), 5))
        print(f"epoch {epoch + 1}: loss {losses[-1]}", file=sys.stderr)
    head.eval()
    return losses


@torch.inference_mode()
def accuracy(head: nn.Sequential, x: Features, labels: Labels, device: str) -> float:
    """The share of pictures, as they are, that the head gets right."""
    guessed = torch.cat([head(part.to(device)).argmax(1).cpu() for part in x[:, 0].split(250)])
    return round((guessed == labels).double().mean().item(), 5)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Read, train, measure and write."""
    files.writable(args.output, (".safetensors",))
    classes = folders(args.photos)
    torch.manual_seed(args.seed)
    classifier = backbone(args.backbone, args.device)
    photos = [photo for some in classes.values() for photo in some]
    labels = torch.tensor([label for label, some in enumerate(classes.values()) for _ in some])
    x = features(classifier, photos)
    seen, unseen = held_out(labels, args.held_out)
    head = new_head(x.shape[2], len(classes), args.dropout).to(args.device)
    losses = train(head, x[seen], labels[seen], args)
    record = {
        "classes": {name: len(some) for name, some in classes.items()},
        "settings": {name: value for name, value in vars(args).items() if not isinstance(value, Path)},
        "loss_per_epoch": losses,
        "accuracy": {
            "trained_on": accuracy(head, x[seen], labels[seen], args.device),
            "held_out": accuracy(head, x[unseen], labels[unseen], args.device),
            "pictures_held_out": len(unseen),
            "largest_class": round(max(map(len, classes.values())) / len(photos), 5),
        },
    }
    classifier.model.classifier = head
    state = {name: value.cpu().contiguous() for name, value in classifier.model.state_dict().items()}
    with files.replacing(args.output) as draft:
        save_file(state, draft, metadata={"classes": ",".join(classes)})
    args.output.with_suffix(".txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    args.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def main() -> None:
    """Run, and say how well it went."""
    args = options()
    try:
        told = run(args)["accuracy"]
    except RelupathError as error:
        sys.exit(f"vgg16_head: {error}")
    assert isinstance(told, dict)
    print(
        f"right on {told['held_out']:.1%} of {told['pictures_held_out']} pictures held out "
        f"(of the largest class are {told['largest_class']:.1%}), on {told['trained_on']:.1%} of those trained on"
    )
    labels = args.output.with_suffix(".txt")
    print(f"relupath explain PHOTO --model torchvision/vgg16 --weights {args.output} --labels {labels}")


if __name__ == "__main__":
    main()
