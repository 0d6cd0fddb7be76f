"""Which networks of torchvision, timm and Transformers are explained exactly: float64, everything random.

    python benchmarks/zoo.py --output docs/zoo.md                            # all, as the table names them
    python benchmarks/zoo.py torchvision --names vgg16 --output docs/zoo.md  # one row again; the others stay
    python benchmarks/zoo.py timm --find-smallest --output docs/zoo.md       # first find every module's smallest model

Each model is frozen by default, else with ``carry="second"``, and its completeness is checked: the bias by difference
against the bias summed over its sources. Three more checks do not use that sum: the output against the bare model's,
the weights against autograd's gradient where nothing but pieces bends, the constants against those at another input.
"""

import argparse
import gc
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

import relupath
from relupath.errors import IncompleteError, UnsupportedOperation
from zoo_models import COLLECTIONS, TEXT, VISION, Case, make, parameters, smallest

TABLE = Path(__file__).parents[1] / "docs" / "zoo.md"
PREFACE = """# The zoo: which networks are explained exactly

Made by `python benchmarks/zoo.py --output docs/zoo.md`: torchvision's classifiers, the smallest model of every module
of timm, and small configurations of Transformers (of language models the logits of the next token, explained by the
embeddings). All is in double precision and random: weights, biases, batch-norm statistics around the signal's, and
numbers of order one wherever initialisation leaves a constant, so that no part is too faint to be checked.

- *carry*: `default`; or `second`, the choice for products of two signals that `freeze` was given; or `refused`. Of
  linear attention `q(kv)` the values are then what carries on. With `first` they are frozen: that is complete as well,
  but a class token that asks with a constant query sees nothing of the picture (coat: W = 0).
- *error*: the bias by difference against the bias summed over its sources, relative to the largest term. A *tolerance*
  above 1e-10 means that the model computes in float32 inside; *widened* is the error when that is done in float64.
- *equal to the bit*: the frozen network's output against the bare model's, run with or without a gradient of the input
  (PyTorch picks kernels by that) and none of the parameters.
- *gradient*: the weights W against autograd's gradient of the bare model, relative to the largest, where all parts
  are affine or piecewise linear; elsewhere gates or scales are frozen and the two differ by definition.
- *layers*: how many hidden layers are recorded by default. GPT-2 spells its GELU out, so none of its is: name them.
- *remarks*: what large models were built with; why a model is refused; operations that are not in the table but passed
  the numeric test; constants that are others at another input (all are compared; intercepts of pieces may move).
"""


class Widened(TorchFunctionMode):
    """Inside, what a model casts to float32 is cast to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run one function with float64 wherever float32 is asked for."""
        func = torch.Tensor.double if func is torch.Tensor.float else func
        wide = {torch.float32: torch.float64}
        args = [wide.get(value, value) if isinstance(value, torch.dtype) else value for value in args]
        kwargs = {k: wide.get(v, v) if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


class Row(NamedTuple):
    """One line of the table."""

    model: str
    carry: str
    error: str = ""
    tolerance: str = ""
    widened: str = ""
    same: str = ""
    gradient: str = ""
    layers: str = ""
    seconds: str = ""
    remarks: str = ""


HEADS = Row(
    "model",
    "carry",
    "error",
    "tolerance",
    "widened",
    "equal to the bit",
    "gradient",
    "layers",
    "seconds",
    "remarks",
)


def examine(case: Case) -> Row:
    """Freeze and check one model."""
    start = time.perf_counter()
    try:
        carry, frozen = frozen_somehow(case)
        account = frozen.check()
    except UnsupportedOperation as refusal:
        return Row(case.name, "refused", remarks=f"{refusal}".partition(". ")[0])
    except IncompleteError as error:
        return Row(case.name, "WRONG", remarks=f"{error}")
    seconds = time.perf_counter() - start
    off = distance(case, frozen.output)
    share = float((account.weight_part / account.value).abs().max())
    gradient, layers, constants = against_gradient(case, frozen), len(frozen.layers), fixed_constants(frozen)
    tested = sorted({operation.name for operation in frozen.operations if operation.kind == "tested"})
    del frozen  # before another one is made
    moved = differing(constants, fixed_constants(case.freeze(carry, 1)))
    remarks = [
        case.remark,
        tested and f"tested: {', '.join(tested)}",
        moved and f"moved: {', '.join(moved)}",
        share < 1e-6 and f"W x is only {share:.0e} of the output",
    ]
    wrong = off > 1e-12 or (gradient is not None and gradient > account.tolerance) or moved
    return Row(
        model=case.name,
        carry="WRONG" if wrong else carry or "default",
        error=f"{float(account.error.max()):.0e}",
        tolerance=f"{account.tolerance:.0e}",
        widened="" if account.tolerance == 1e-10 else widened_error(case, carry),
        same="yes" if off == 0 else f"off by {off:.0e}",
        gradient="" if gradient is None else f"{gradient:.0e}",
        layers=f"{layers}",
        seconds=f"{seconds:.1f}",
        remarks="; ".join(remark for remark in remarks if remark),
    )


def frozen_somehow(case: Case) -> tuple[str | None, relupath.Frozen]:
    """The model frozen by default, else with the documented choice for products, and which of the two it was.

    Raises:
        UnsupportedOperation: it is refused either way.
    """
    try:
        return None, case.freeze()
    except UnsupportedOperation:
        return "second", case.freeze("second")


def widened_error(case: Case, carry: str | None) -> str:
    """The error of completeness with float64 in place of what the model computes in float32."""
    with Widened():
        return f"{float(case.freeze(carry).check().error.max()):.0e}"


def distance(case: Case, output: Tensor) -> float:
    """How far an output is from the bare model's, run with or without a gradient of the input."""
    x = case.inputs[0].clone()
    with torch.no_grad():
        outputs = [case.plain(x)]
    if not torch.equal(outputs[0], output):
        outputs.append(case.plain(x.requires_grad_(x.is_floating_point())).detach())
    return min(float((plain - output).abs().max() / plain.abs().max()) for plain in outputs)


def against_gradient(case: Case, frozen: relupath.Frozen) -> float | None:
    """How far W is from autograd's gradient of the bare model; None where a gate or a scale is frozen."""
    if {operation.kind for operation in frozen.operations} - {"affine", "piece", "tested"}:
        return None
    x = case.inputs[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad((case.plain(x) * frozen.functional().gradient).sum(), x)
    weight = relupath.linear_model(frozen).weight
    return float((weight - gradient).abs().max() / gradient.abs().max())


def fixed_constants(frozen: relupath.Frozen) -> list[tuple[str, Tensor]]:
    """The constants that must not depend on the input: all but the intercepts of pieces, such as ReLU6 above 6."""
    pieces = {f"{operation.module}:{operation.name}" for operation in frozen.operations if operation.kind == "piece"}
    return [(source.name, source.constant) for source in frozen.sources if source.name not in pieces]


def differing(first: list[tuple[str, Tensor]], second: list[tuple[str, Tensor]]) -> list[str]:
    """The names of constants that are not the same in both."""
    if [name for name, _ in first] != [name for name, _ in second]:
        return sorted({name for name, _ in first} ^ {name for name, _ in second}) or ["their order"]
    return sorted({name for (name, c), (_, d) in zip(first, second, strict=True) if not torch.equal(c, d)})


def names_of(collection: str, table: dict[str, dict[str, Row]], find: bool = False) -> list[str]:
    """The models of a collection; of timm those that the table names."""
    if collection == "torchvision":
        return torchvision.models.list_models(module=torchvision.models)
    if collection == "timm":
        return list(table.get("timm", ())) if table.get("timm") and not find else smallest()
    return [*VISION, "vit (eager)", *TEXT, *(f"{name} (eager)" for name in TEXT)]


def read(path: Path) -> dict[str, dict[str, Row]]:
    """The rows of a table that was written before, by collection and model."""
    table: dict[str, dict[str, Row]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("## "):
            rows = table.setdefault(line[3:], {})
        elif line.startswith("| ") and table:
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            rows |= {} if cells[0] == HEADS.model else {cells[0]: Row(*cells)}
    return table


def summary(collection: str, rows: list[Row]) -> str:
    """What the rows of a collection come to, in one sentence."""
    explained = [row for row in rows if row.error]
    count = Counter(row.carry for row in rows)
    strict = [float(row.error) for row in explained if row.tolerance == "1e-10"]
    loose = [float(row.error) for row in explained if row.tolerance != "1e-10"]
    gradients = [float(row.gradient) for row in explained if row.gradient]
    widened = [float(row.widened) for row in explained if row.widened]
    exact = sum(row.same == "yes" for row in explained)
    said = [
        f"- **{collection}**: {len(explained) - count['WRONG']} of {len(rows)} models are explained exactly",
        count["second"] and f", {count['default']} by default and {count['second']} with `carry='second'`",
        count["refused"] and f"; {count['refused']} are refused",
        count["left out"] and f"; {count['left out']} are left out",
        count["WRONG"] and f"; {count['WRONG']} are WRONG",
        f". The largest error is {max(strict, default=0):.0e}",
        loose
        and f", and {max(loose):.0e} in {len(loose)} with float32 inside ({max(widened):.0e} when that is widened)",
        f". The output is the bare model's to the bit in {'all' if exact == len(explained) else exact}",
        gradients and f"; in all {len(gradients)} without frozen gates W is the gradient, to {max(gradients):.0e}",
    ]
    return "".join(part for part in said if part) + "."


def text(table: dict[str, dict[str, Row]]) -> str:
    """The whole page."""
    ordered = {collection: table[collection] for collection in COLLECTIONS if table.get(collection)}
    lines = [PREFACE, *(summary(collection, list(rows.values())) for collection, rows in ordered.items())]
    for collection, rows in ordered.items():
        bar = "|" + "---|" * len(HEADS)
        lines += ["", f"## {collection}", "", "| " + " | ".join(HEADS) + " |", bar]
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows.values()]
    return "\n".join([*lines, ""])


def main() -> None:
    """Run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    several = {"nargs": "*", "choices": [[], *COLLECTIONS], "metavar": "COLLECTION"}
    parser.add_argument("collections", **several, help=f"of {', '.join(COLLECTIONS)}; all of them if none is named")
    parser.add_argument("--names", nargs="+", help="these models only; of timm modules are names too")
    parser.add_argument("--largest", type=float, help="leave out models of more million parameters")
    parser.add_argument("--find-smallest", action="store_true", help="look for each timm module's smallest model again")
    parser.add_argument("--output", type=Path, help=f"merge the rows into this page, such as {TABLE.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)  # one core: the same numbers on every machine of this kind
    table = read(TABLE)
    for collection in options.collections or COLLECTIONS:
        names = names_of(collection, table, options.find_smallest)
        wanted = [n for n in names if not options.names or {n, *n.split(" / ")} & set(options.names)]
        for name in tqdm(wanted, desc=collection, file=sys.stderr):
            if options.largest and parameters(collection, name) > options.largest * 1e6:
                row = Row(name, "left out", remarks=f"more than {options.largest:g} million parameters")
            else:
                row = examine(make(collection, name))
            print(" | ".join(row), flush=True)
            gc.collect()
            rows = {**table.get(collection, {}), name: row}
            table[collection] = {name: rows[name] for name in names if name in rows}
            if options.output:
                options.output.write_text(text(table))


if __name__ == "__main__":
    main()
