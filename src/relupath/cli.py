"""The command line: results go to stdout, progress to stderr; status 2 for wrong usage, 1 for what failed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from PIL import Image
from tqdm import tqdm

import relupath

from . import files
from .errors import RelupathError, TargetError, UnknownLayerError, UsageError

if TYPE_CHECKING:
    from .runs import Explanation

SCENE = 1_000_007
USAGE = (UsageError, TargetError, UnknownLayerError)
EXISTING = click.Path(exists=True, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(relupath.__version__, prog_name="relupath")
def main() -> None:
    """Exact explanations of a neural network's decision by paths of hidden units."""


@main.command()
@click.argument("photo", required=False, type=EXISTING)
@click.option(
    "--model",
    default="creatures",
    show_default=True,
    help="creatures, torchvision/NAME[@WEIGHTS], timm/NAME[@WEIGHTS], package.module:factory or file.py:factory "
    "(the last two run that code).",
)
@click.option("--weights", type=EXISTING, help="State dict: safetensors, or a pickle of tensors.")
@click.option("--labels", type=EXISTING, help="Text file with one class name a line.")
@click.option("--target", help="Class to explain, by number or name.  [default: the predicted one]")
@click.option("--against", help="Class to compare with, by number or name.  [default: the best other one]")
@click.option("--layers", help="Layers for the path: names separated by commas, or every:K.  [default: all]")
@click.option("--depth", type=click.IntRange(min=1), help="Use only so many layers from the top.")
@click.option("--scene", type=click.IntRange(min=0), help="Without a photo: the seed of the scene that is drawn.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The figure: .png, .pdf or .svg.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all numbers to this file.")
@click.option("--bare", is_flag=True, help="Leave the photo out of the figure: maps and numbers only.")
@click.option("--device", default="cpu", show_default=True, help="Such as cpu, cuda or mps.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def explain(photo: Path | None, output: Path | None, json_path: Path | None, quiet: bool, **options: Any) -> None:
    """Say why the network decided as it did on PHOTO, and what speaks for the next best class.

    Without PHOTO the embedded demo explains a scene that it draws itself.
    """
    output = output or Path(f"{photo.stem if photo else 'scene'}.explained.png")
    try:
        files.writable(output, (".png", ".pdf", ".svg"))
        if json_path is not None:
            files.writable(json_path, (".json",))
        with _progress(quiet) as progress:
            explanation = _explain(photo, options, progress)
            progress("drawing")
            with files.replacing(json_path) if json_path else nullcontext() as draft:
                if draft is not None:
                    draft.write_text(json.dumps(explanation.to_dict(), indent=1) + "\n", encoding="utf-8")
                relupath.draw.save(explanation, output, bare=options["bare"])
    except USAGE as error:
        raise click.UsageError(str(error)) from error
    except RelupathError as error:
        raise click.ClickException(str(error)) from error
    click.echo(_report(explanation))
    for written in filter(None, (output, json_path)):
        click.echo(f"wrote {written}")


def _explain(photo: Path | None, options: dict[str, Any], progress: Callable[[str], None]) -> Explanation:
    """Load the model and the picture, and explain."""
    spec, scene = options["model"], options["scene"]
    if photo is None and spec != "creatures":
        raise UsageError(f"give a PHOTO for {spec}: only the model creatures draws its own scenes")
    if photo is not None and scene is not None:
        raise UsageError("--scene draws a picture and PHOTO is one: give one of the two")
    progress("loading torch and the model")
    if photo is None:
        seed = SCENE if scene is None else scene
        picture = relupath.images.Picture(Image.fromarray(relupath.creatures.draw(seed).image), f"scene {seed}")
    else:
        picture = relupath.images.read(photo)
    if ":" in spec:
        click.echo(f"note: running code: {spec} is imported and called", err=True)
    loaded = {key: options[key] for key in ("weights", "labels", "device", "dtype")}
    classifier = relupath.models.load(spec, **loaded)
    for note in (*classifier.notes[":" in spec :], *picture.notes):
        click.echo(f"note: {note}", err=True)
    chosen = {key: options[key] for key in ("target", "against", "layers", "depth")}
    return relupath.runs.explain(classifier, picture, progress=progress, **chosen)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """One line on stderr that says what is being done and for how long."""
    with tqdm(bar_format="{desc} [{elapsed}]", file=sys.stderr, disable=quiet, leave=False) as bar:
        yield lambda stage: bar.set_description_str(stage)


def _report(explanation: Explanation) -> str:
    """The results as text: classes, each target's weight part and bias, each path depth by depth."""
    lines = [f"{explanation.picture} explained by {explanation.model}", ""]
    lines.append(f"{'best classes':<36}{'logit':>10}{'probability':>13}")
    lines += [f"  {_cut(s.name, 34):<34}{s.logit:>10.3f}{100 * s.probability:>11.1f} %" for s in explanation.best]
    units = [str(part.path.steps[0]) for row in explanation.rows for part in row.parts]
    width = max(map(len, [*units, "path from the output down"]))
    for row in explanation.rows:
        whole = row.whole
        lines += ["", f"{row.role}: {row.title}", f"  {_number(whole.value)} = W x {_number(whole.weight_part)}"]
        lines[-1] += f" + bias {_number(whole.bias)}"
        lines.append(
            f"  {'path from the output down':<{width + 5}}{'importance':>11}{'value':>11}{'W x':>11}{'bias':>11}"
        )
        for depth, part in enumerate(row.parts, start=1):
            unit = str(part.path.steps[0])
            numbers = (part.importance, part.value, part.weight_part, part.bias)
            lines.append(f"  {depth:>3}  {unit:<{width}}" + "".join(f"{_number(n):>11}" for n in numbers))
        if row.end is not None:
            element, value = row.end
            lines.append(f"       {element:<{width + 11}}{_number(value):>11}{_number(value):>11}")
        lines.append(f"       {row.stopped}")
    lines += [
        "",
        f"completeness: W x + bias equals the output to {explanation.error:.0e} (bias summed over its sources)",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Four digits, in powers of ten where the plain form would hide them."""
    if value is None:
        return ""
    return f"{value:.3f}" if value == 0 or 1e-2 <= abs(value) < 1e5 else f"{value:.2e}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
