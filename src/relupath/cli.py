"""The command line: results go to stdout, progress to stderr; status 2 for wrong usage, 1 for what failed."""

from __future__ import annotations

import json
import shlex
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from tqdm import tqdm

import relupath

from . import _text, files, plans
from ._options import EXISTING, EXTENT, LOADING, MEASURING, MODEL, SCENES, SEARCHING, STRATEGY, TARGET, given
from .errors import PathError, RelupathError, TargetError, UnknownLayerError, UsageError

if TYPE_CHECKING:
    from .explorer import Explorer
    from .images import Picture
    from .models import Classifier
    from .runs import Plan

SCENE = 1_000_007
USAGE = (UsageError, PathError, TargetError, UnknownLayerError)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(relupath.__version__, prog_name="relupath")
def main() -> None:
    """Exact explanations of a neural network's decision by paths of hidden units."""


@main.command()
@click.argument("photo", required=False, type=EXISTING)
@click.option("--model", default="creatures", show_default=True, help=MODEL)
@click.option("--against", help="Class to compare with, by number or name.  [default: the best other one]")
@given(SEARCHING)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The figure: .png, .pdf or .svg.")
@click.option("--bare", is_flag=True, help="Leave the photo out of the figure: maps and numbers only.")
@click.option("--bias", is_flag=True, help="Also say which layers' biases decide; draws another figure, *.bias.*")
@given((*TARGET, *LOADING))
@SCENES
def explain(photo: Path | None, output: Path | None, json_path: Path | None, quiet: bool, **options: Any) -> None:
    """Say why the network decided as it did on PHOTO, and what speaks for the next best class.

    Without PHOTO the embedded demo explains a scene that it draws itself.
    """
    output = output or Path(f"{photo.stem if photo else 'scene'}.explained.png")
    more = {f"{kind}_figure": output.with_stem(f"{output.stem}.{kind}") for kind in ("bias", "tree") if options[kind]}
    figures = {"figure": output, **more}
    with _spoken():
        for figure in figures.values():
            files.writable(figure, (".png", ".pdf", ".svg"))
            _refuse_overwriting(figure, [photo] if photo else [])
        _refuse_nothing(photo, options)
        with _progress(quiet) as progress, _json(json_path) as write:
            plan = _plan(options)
            classifier, picture = _loaded(photo, options, progress)
            classes = options["target"], options["against"]
            explanation = relupath.runs.explain(classifier, picture, *classes, plan=plan, progress=progress)
            progress("drawing")
            write(explanation.to_dict())
            for kind, file in figures.items():
                relupath.draw.save(getattr(relupath.draw, kind)(explanation, bare=options["bare"]), file)
    click.echo(_text.report(explanation))
    if options["bias"]:
        click.echo(_text.biases(explanation))
    for written in filter(None, (*figures.values(), json_path)):
        click.echo(f"wrote {written}")


@main.command()
@click.argument("model", default="creatures")
@click.argument("photo", required=False, type=EXISTING)
@given((*TARGET, *LOADING))
@SCENES
def layers(photo: Path | None, json_path: Path | None, quiet: bool, **options: Any) -> None:
    """List the layers of MODEL: shapes, neurons, open gates, and where its bias enters.

    The gates are counted and the bias is summed at PHOTO; without one, at a scene for creatures, at noise for others.
    """
    with _spoken(), _progress(quiet) as progress, _json(json_path) as write:
        classifier, picture = _loaded(photo, options, progress)
        found = relupath.runs.layers(classifier, picture, options["target"], progress)
        write(found.to_dict())
    click.echo(_text.table(found))
    if json_path is not None:
        click.echo(f"wrote {json_path}")


@main.command()
@click.argument("photos", nargs=-1, required=True, type=EXISTING)
@click.option("--model", default="creatures", show_default=True, help=MODEL)
@click.option("--paths", type=EXISTING, help="Also apply the target's paths in this file, written by explain --json.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The figure: .png, .pdf or .svg.")
@given((*TARGET, *LOADING))
def elsewhere(
    photos: tuple[Path, ...],
    paths: Path | None,
    output: Path | None,
    json_path: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Say what the linear model that the network is at each of the PHOTOS gives for every other one."""
    output = output or Path(f"{photos[0].stem}.elsewhere.png")
    with _spoken():
        files.writable(output, (".png", ".pdf", ".svg"))
        if len(photos) < 2:
            raise UsageError("give two or more PHOTOS: a linear model is applied to the others")
        with _progress(quiet) as progress, _json(json_path) as write:
            module = import_module(".elsewhere", __package__)
            pictures = [relupath.images.read(photo) for photo in photos]
            known = module.paths_of(paths) if paths else ()
            classifier = _classifier(options, progress, [note for picture in pictures for note in picture.notes])
            found = module.elsewhere(classifier, pictures, options["target"], known, progress)
            progress("drawing")
            write(found.to_dict())
            relupath.draw.save(relupath.draw.elsewhere_figure(found), output)
    click.echo(_text.matrices(found))
    for written in filter(None, (output, json_path)):
        click.echo(f"wrote {written}")


@main.command()
@click.argument("photos", nargs=-1, required=True, type=EXISTING)
@click.option("--model", default="creatures", show_default=True, help=MODEL)
@click.option(
    "--search",
    "searches",
    type=click.Choice([*plans.SEARCHES]),
    multiple=True,
    default=[*plans.SEARCHES][:-1],
    help="A search to measure; more than once for several.  [default: all but exact]",
)
@given(STRATEGY)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The figure: .png, .pdf or .svg.")
@given((*MEASURING, *TARGET, *LOADING))
def evaluate(
    photos: tuple[Path, ...],
    searches: tuple[str, ...],
    output: Path | None,
    csv_path: Path | None,
    json_path: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure insertion and deletion of our maps, simple baselines and a random control on PHOTOS.

    PHOTOS are pictures and folders of pictures. W x is the linear model of the whole network, a search the sum over
    its paths.
    """
    output = output or Path(f"{photos[0].resolve().stem}.evaluated.png")
    csv_path = csv_path or output.with_suffix(".csv")
    with _spoken():
        files.writable(output, (".png", ".pdf", ".svg"))
        pictures = files.pictures(photos)
        _refuse_overwriting(output, pictures)
        plans = {name: _plan({**options, "search": name, "others": searches}) for name in dict.fromkeys(searches)}
        with (
            _progress(quiet) as progress,
            _json(json_path) as write,
            _draft(csv_path, ".csv") as write_csv,
        ):
            module = import_module(".evaluation", __package__)
            classifier = _classifier(options, progress, ())
            read = (relupath.images.read(picture) for picture in pictures)
            how = (options[name] for name in ("target", "by_channel", "tolerance"))
            found = module.evaluate(classifier, read, plans, *how, progress)
            progress("drawing")
            write(found.to_dict())
            write_csv(found.to_csv())
            relupath.draw.save(relupath.draw.evaluation_figure(found), output)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(_text.faithfulness(found))
    for written in filter(None, (output, csv_path, json_path)):
        click.echo(f"wrote {written}")


@main.command()
@click.argument("photos", nargs=-1, type=EXISTING)
@click.option("--model", default="creatures", show_default=True, help=MODEL)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; others can ask it then.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to listen at.  [default: a free one]")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in a browser.")
@given(LOADING)
@SCENES
def explore(photos: tuple[Path, ...], host: str, port: int, browser: bool, quiet: bool, **options: Any) -> None:
    """Serve a page on which the decision on each of the PHOTOS is taken apart, until Ctrl-C.

    Without PHOTOS it is the decision of the embedded demo on a scene that it draws itself. The address holds a secret
    token: who has it can ask the page's questions.
    """
    with _spoken():
        _refuse_scene(bool(photos), options)
        with _progress(quiet) as progress:
            progress("loading torch and the model")
            server, explorer = (import_module(name, __package__) for name in (".server", ".explorer"))

            def loaded() -> Explorer:
                shown: list[tuple[Picture, str | None]] = [(relupath.images.read(photo), None) for photo in photos]
                if not photos and options["model"] == "creatures":
                    shown = [_scene(options)]
                classifier = _classifier(options, progress, [note for picture, _ in shown for note in picture.notes])
                made: Explorer = explorer.Explorer(
                    classifier, pictures=explorer.PICTURES + len(shown), python=_code(options)
                )
                for picture, code in reversed(shown):  # the first one is the newest, and opens
                    made.add(picture, code)
                return made

            try:
                explored = server.apart(loaded).result()
            except KeyboardInterrupt:
                click.echo("Aborted!", err=True)
                server.leave(1)
                raise

        def ready(address: str) -> None:
            click.echo(f"exploring at {address} until Ctrl-C")
            if browser:
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        with suppress(KeyboardInterrupt):
            server.serve(explored, ready, host, port)
    server.leave()


@main.command()
@click.argument("photo", required=False, type=EXISTING)
@click.option("--model", default="creatures", show_default=True, help=MODEL)
@click.option("--against", help="Class to compare with, by number or name.  [default: the best other one]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file: .html.")
@given((*EXTENT, *TARGET, *LOADING))
@SCENES
def report(photo: Path | None, output: Path | None, json_path: Path | None, quiet: bool, **options: Any) -> None:
    """Write what explore shows of PHOTO into one file that opens offline: a summary, maps to expand, all numbers.

    Without PHOTO it is the decision of the embedded demo on a scene that it draws itself.
    """
    output = output or Path(f"{photo.stem if photo else 'scene'}.report.html")
    with _spoken():
        _refuse_overwriting(output, [photo] if photo else [], "report")
        _refuse_nothing(photo, options)
        with _progress(quiet) as progress, _json(json_path) as write, _draft(output, ".html") as write_page:
            module = import_module(".report", __package__)
            extent = module.Extent(*(options[name] for name in ("depth", "width", "partition", "layers")))
            classifier, picture = _loaded(photo, options, progress)
            named = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}
            again = module.Again(_command(photo, named), _code(named), None if photo else _scene(options)[1])
            classes = options["target"], options["against"]
            made = module.report(classifier, picture, classes, extent, again, progress)
            write(made.to_dict())
            write_page(made.to_html())
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
    if json_path is not None:
        click.echo(f"wrote {json_path}")


_LOADED = {"weights": None, "labels": None, "device": "cpu", "dtype": "float32"}


def _command(photo: Path | None, options: dict[str, Any]) -> str:
    """The command that reports one level more of the same."""
    source = click.get_current_context().get_parameter_source
    said = [name for name in options if name != "depth" and source(name) is ParameterSource.COMMANDLINE]
    own = [f"--{name}={options[name]}" for name in said]
    return shlex.join(["relupath", "report", *([photo.name] if photo else []), f"--depth={options['depth'] + 1}", *own])


def _code(options: dict[str, Any]) -> str:
    """The Python expression that loads the model."""
    more = [f"{key}={str(options[key])!r}" for key, value in _LOADED.items() if options[key] != value]
    return f"relupath.models.load({', '.join([repr(options['model']), *more])})"


def _plan(options: dict[str, Any]) -> Plan:
    """The options in objects.

    Raises:
        UsageError: an option belongs to another search or to the tree, or the partition is unknown.
        PathError: a number is out of range.
    """
    search = options["search"]
    numbers = {name: options[name] for name in plans.NUMBERS}
    strategy = plans.search(search, numbers, options.get("others", (search,)))
    partition = plans.partition(options["partition"])
    depth, width = options.get("tree_depth"), options.get("tree_width")
    if not options.get("tree") and (depth or width):
        raise UsageError("--tree-depth and --tree-width belong to --tree: give it too")
    tree = (depth or 2, width or 4) if options.get("tree") else None
    where = options["layers"], options["depth"], options.get("ablate", False)
    return relupath.runs.Plan(strategy, partition, *where, tree, options.get("gap", False))


def _loaded(photo: Path | None, options: dict[str, Any], progress: Callable[[str], None]) -> tuple[Classifier, Picture]:
    """The model and the picture; without a photo a scene for creatures, noise for other models."""
    _refuse_scene(photo is not None, options)
    if photo is not None:
        picture = relupath.images.read(photo)
    elif options["model"] == "creatures":
        picture, _ = _scene(options)
    else:
        picture = relupath.images.noise()
    return _classifier(options, progress, picture.notes), picture


def _scene(options: dict[str, Any]) -> tuple[Picture, str]:
    """The scene that is drawn, and the Python expression that draws it."""
    seed = SCENE if options["scene"] is None else options["scene"]
    return relupath.images.scene(seed), f"relupath.images.scene({seed})"


def _refuse_overwriting(output: Path, photos: Sequence[Path], what: str = "figure") -> None:
    """Refuse to write over one of the photos."""
    if output.exists() and any(output.samefile(photo) for photo in photos):
        raise UsageError(f"the {what} would overwrite the photo {output}: name another file with -o")


def _refuse_nothing(photo: Path | None, options: dict[str, Any]) -> None:
    """Refuse to go without a photo where the model draws no scenes."""
    if photo is None and options["model"] != "creatures":
        raise UsageError(f"give a PHOTO for {options['model']}: only the model creatures draws its own scenes")


def _refuse_scene(photo: bool, options: dict[str, Any]) -> None:
    """Refuse a scene beside a photo, or for a model that draws none."""
    spec, scene = options["model"], options["scene"]
    if scene is not None and photo:
        raise UsageError("--scene draws a picture and PHOTO is one: give one of the two")
    if scene is not None and spec != "creatures":
        raise UsageError(f"--scene draws a picture for the model creatures, not for {spec}")


def _classifier(options: dict[str, Any], progress: Callable[[str], None], notes: Sequence[str]) -> Classifier:
    """The model; what a person should know about it and the pictures goes to stderr."""
    spec = options["model"]
    progress("loading torch and the model")
    if ":" in spec:
        click.echo(f"note: running code: {spec} is imported and called", err=True)
    loaded = {key: options[key] for key in _LOADED}
    classifier = replace(relupath.models.load(spec, **loaded), carry=options["carry"])
    for note in (*classifier.notes[":" in spec :], *notes):
        click.echo(f"note: {note}", err=True)
    return classifier


@contextmanager
def _spoken() -> Iterator[None]:
    """Every error as one sentence: exit status 2 for wrong usage, 1 for what failed."""
    try:
        yield
    except USAGE as error:
        raise click.UsageError(str(error)) from error
    except RelupathError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _draft(path: Path | None, ending: str) -> Iterator[Callable[[str], None]]:
    """Writes text to a file that replaces an older one only if nothing fails; nowhere without a path."""
    if path is not None:
        files.writable(path, (ending,))
    with files.replacing(path) if path else nullcontext() as draft:

        def write(text: str) -> None:
            if draft is not None:
                draft.write_text(text, encoding="utf-8")

        yield write


@contextmanager
def _json(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes numbers, as ``_draft`` writes text."""
    with _draft(path, ".json") as write:
        yield lambda numbers: write(json.dumps(numbers, indent=1, allow_nan=False) + "\n")


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """One line on stderr that says what is being done and for how long."""
    with tqdm(bar_format="{desc} [{elapsed}]", file=sys.stderr, disable=quiet, leave=False) as bar:
        yield lambda stage: bar.set_description_str(stage)


if __name__ == "__main__":
    main()
