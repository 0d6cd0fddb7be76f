"""Assertions named after mathematical properties, with one table of tolerances."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path as FilePath

import jaxtyping
import pytest
import torch
import torch.nn.modules.module as module_globals
from torch import Tensor, nn

import relupath
from relupath import Frozen, Node, Path, PathModel
from relupath._bias import BiasSources
from relupath._mass import PathMass

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""How far two routes to the same number may be apart, relative to the largest entry, by dtype."""


EXPECTED = FilePath(__file__).parents[1] / "paper" / "expected"
WITHIN = json.loads((EXPECTED / "tolerances.json").read_text())


def within(kind: str, numbers: object, scale: float = 1.0) -> object:
    """Numbers as near to those that are checked in as their tolerance says; the absolute one times a scale."""
    least = WITHIN[kind]
    return pytest.approx(numbers, rel=least.get("rel"), abs=least.get("abs", 0) * scale)


def refusal(run: Callable[[], object], *errors: type[Exception]) -> str | None:
    """The sentence with which something is refused, or None if it is not."""
    try:
        run()
    except errors as error:
        return str(error)
    return None


@contextmanager
def typechecks_off() -> Iterator[None]:
    """Without the tests' type checker, as a user calls the library."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* violates type hint")
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def assert_close(got: Tensor, expected: Tensor, scale: Tensor | float = 0.0) -> None:
    """Equal to round-off, relative to the largest entry or to ``scale``, the size of the terms that were added."""
    assert got.shape == expected.shape, f"shape {list(got.shape)} instead of {list(expected.shape)}"
    assert torch.isfinite(got).all()
    tolerance = TOLERANCE[got.dtype]
    got, expected = got.detach().double(), expected.detach().double()
    size = max(float(expected.abs().max()), float(torch.as_tensor(scale).detach().abs().max()))
    error = float((got - expected).abs().max())
    assert error <= tolerance * size, f"error {error:.3e} at size {size:.3e}"


def assert_zero(model: PathModel) -> None:
    """The linear model is nothing: weight, bias and value vanish exactly."""
    assert all((w == 0).all() for w in weights(model))
    assert (model.bias == 0).all()
    assert (model.value == 0).all()


def weights(model: PathModel) -> tuple[Tensor, ...]:
    return model.weight if isinstance(model.weight, tuple) else (model.weight,)


def flat(model: PathModel) -> Tensor:
    """Weight and bias of every sample in one matrix (B, inputs + 1)."""
    return torch.cat([*(w.flatten(1) for w in weights(model)), model.bias[:, None]], 1)


def assert_same_model(got: PathModel, expected: PathModel, scale: float = 0.0) -> None:
    """The same affine function of the input: weight by weight, bias by bias, value by value."""
    for w, v in zip(weights(got), weights(expected), strict=True):
        assert_close(w, v, scale)
    assert_close(got.bias, expected.bias, max(scale, float(expected.value.abs().max())))
    assert_close(got.value, expected.value, scale)


def assert_complete(frozen: Frozen, target: object = None) -> None:
    """f(x) = <W, x> + b, with b by difference and by summing every constant."""
    account = frozen.check(target)
    functional = frozen.functional(target)
    assert torch.equal(account.value, functional.value)
    assert account.tolerance == {torch.float64: 1e-10, torch.float32: 1e-4}[frozen.output.dtype]
    size = account.value.abs() + account.weight_part.abs() + account.bias.abs()
    assert_close(account.weight_part + account.bias, account.value, size)
    assert_close(account.bias_from_sources, account.bias, size)
    assert (account.error <= account.tolerance).all()
    whole = relupath.linear_model(frozen, target)
    assert_close(whole.value, account.value)
    assert_close(whole.bias, account.bias_from_sources, size)
    assert_evaluates(whole, frozen)


def assert_evaluates(model: PathModel, frozen: Frozen) -> None:
    """Weight and bias at the explained input give the value; the parts sum to the whole."""
    x = tuple(layer.output for layer in frozen.inputs)
    by_hand = sum((w * v).flatten(1).sum(1) for w, v in zip(weights(model), x, strict=True)) + model.bias
    size = sum((w * v).abs().flatten(1).sum(1) for w, v in zip(weights(model), x, strict=True)) + model.bias.abs()
    assert_close(by_hand, model.value, size)
    assert_close(model(x if len(x) > 1 else x[0]), model.value, size)
    assert_close(model.weight_part + model.bias, model.value, size)


def weighted(output: Tensor) -> Tensor:
    """A target in which every logit counts, none like another."""
    return output @ torch.linspace(1, 2, output.shape[-1], dtype=output.dtype)


def assert_twin(frozen: Frozen, twin: Callable[..., Tensor], names: Sequence[str] = ()) -> None:
    """Output and weights are those of a twin in plain torch, in which gates and scales are constants by hand.

    Args:
        frozen: the frozen network.
        twin: from the explained inputs to the output.
        names: what the logits stand for, to say which of them is wrong.
    """
    entries = [layer.output.clone().requires_grad_() for layer in frozen.inputs]
    with torch.enable_grad():
        expected = twin(*entries)
    assert_close(frozen.output, expected.detach())
    gradients = torch.autograd.grad(weighted(expected).sum(), entries, retain_graph=True)
    pairs = zip(weights(relupath.linear_model(frozen, weighted)), gradients, strict=True)
    wrong = [sentence for pair in pairs if (sentence := refusal(partial(assert_close, *pair), AssertionError))]
    assert not wrong, (wrong, _wrong_logits(frozen, expected, entries, names))
    assert all(gradient.any() for gradient in gradients), "a derivative that vanishes shows nothing"


def _wrong_logits(frozen: Frozen, expected: Tensor, entries: Sequence[Tensor], names: Sequence[str]) -> list[object]:
    """The logits whose weights are not the twin's."""
    found: list[object] = []
    for c in range(expected.shape[1]):
        cotangent = torch.zeros_like(frozen.output)
        cotangent[:, c] = 1
        gradients = torch.autograd.grad(expected[:, c].sum(), entries, retain_graph=True)
        pairs = zip(frozen.vjp({frozen.top: cotangent}, frozen.inputs), gradients, strict=True)
        if any(refusal(partial(assert_close, *pair), AssertionError) for pair in pairs):
            found.append(names[c] if names else c)
    return found


def assert_branches(
    model: nn.Module,
    x: Tensor,
    twins: Sequence[Callable[..., Tensor]],
    names: Sequence[str],
    to_the_bit: bool = True,
    **how: str | None,
) -> Frozen:
    """Branches side by side are what the model computes, complete together, and each is its twin.

    Where torch takes another kernel when derivatives are needed, the output is the model's to round-off.
    """
    frozen = relupath.freeze(model, x, **how)
    if to_the_bit:
        with torch.no_grad():
            differ = (frozen.output != model(x.clone())).any(0)
        assert not differ.any(), [name for name, differs in zip(names, differ, strict=True) if differs]
    else:
        assert_close(frozen.output, model(x).detach())
    assert_complete(frozen, weighted)
    assert_twin(frozen, lambda entry: model(entry, twins), names)
    return frozen


def assert_bias_from_sources_below(frozen: Frozen, target: object, path: Path, model: PathModel) -> None:
    """b^P counted constant by constant, over the sources below the path's lowest layer."""
    cotangent = frozen.functional(target).gradient
    above = frozen.top
    for step in reversed(path.steps):
        layer = frozen.layer(step.layer)
        (pulled,) = frozen.vjp({above: cotangent}, [layer])
        mask = torch.zeros(layer.shape, dtype=pulled.dtype)
        for unit in step.units:
            mask[tuple(slice(None) if i is None else i for i in unit)] = 1
        above, cotangent = layer, pulled * mask
    edges = [source.edge for source in frozen.sources]
    total, size = torch.zeros_like(model.bias), torch.zeros_like(model.bias)
    if edges:
        with torch.enable_grad():
            grads = torch.autograd.grad([above.edge], edges, [cotangent], retain_graph=True, allow_unused=True)
        for grad, source in zip(grads, frozen.sources, strict=True):
            if grad is not None:
                term = (grad * source.constant).expand_as(grad)
                term = term.reshape(len(total), -1)
                total, size = total + term.sum(1), size + term.abs().sum(1)
    assert_close(model.bias, total, size + model.value.abs() + model.weight_part.abs())


def assert_children_sum_to_parent(
    children: Sequence[PathModel], parent: PathModel, remainder: PathModel | None = None
) -> None:
    """The parts (and the remainder) sum to the whole: weight by weight, bias by bias, value by value."""
    parts = [*children, remainder] if remainder is not None else list(children)
    scale = float(sum(flat(part).abs() for part in parts).max())
    assert_close(sum(flat(part) for part in parts), flat(parent), scale)
    values = sum(part.value.abs() for part in parts)
    assert_close(sum(part.value for part in parts), parent.value, values)


def nodes(node: Node) -> Iterator[Node]:
    """The nodes of a tree that are computed."""
    yield node
    if node.is_expanded:
        for child in node.children:
            yield from nodes(child)


def assert_adds_up(tree: Node) -> None:
    """The leaves below every node of a tree sum to it: value, weight part, bias and contribution."""
    size = max(abs(n.value) + abs(n.bias) for n in nodes(tree))
    for node in nodes(tree):
        leaves = list(node.leaves())
        for part in ("value", "bias", "weight_part"):
            total = sum(getattr(leaf, part) for leaf in leaves)
            assert abs(total - getattr(node, part)) <= 1e-10 * size, (node, part)
        for i, whole in enumerate(node.contribution):
            summed = torch.stack([leaf.contribution[i] for leaf in leaves])
            assert_close(summed.sum(0), whole, float(summed.abs().sum(0).max()) + size)


def assert_nodes_are_their_paths(tree: Node, frozen: Frozen, target: object, sample: int) -> None:
    """Every node of a path, the rest of a layer included, is the linear model of that path."""
    size = max(abs(n.value) for n in nodes(tree))
    paths = [node.path for node in nodes(tree) if node.kind in ("path", "rest")]
    assert len(set(paths)) == len(paths)
    for node in nodes(tree):
        if node.kind in ("path", "rest"):
            model = relupath.linear_model(frozen, target, node.path)
            assert abs(float(model.value[sample]) - node.value) <= 1e-10 * size
            assert abs(float(model.bias[sample]) - node.bias) <= 1e-9 * size
            for x, w, c in zip(frozen.inputs, weights(model), node.contribution, strict=True):
                assert_close(w[sample] * x.output[sample], c, size)


def assert_bias_adds_up(frozen: Frozen, target: object = None, path: Path | None = None) -> BiasSources:
    """Every view of a bias sums to that of the linear model, and both maps together to its value."""
    found, expected = relupath.bias_sources(frozen, target, path), relupath.linear_model(frozen, target, path)
    assert torch.equal(found.model.bias, expected.bias)
    size = sum(term.units.abs().sum(1) for term in found.terms) + expected.value.abs() + expected.weight_part.abs()
    zero = torch.zeros_like(expected.bias)
    assert_close(sum(found.by_source().values(), zero), expected.bias, size)
    assert_close(sum(found.by_layer().values(), zero), expected.bias, size)
    for term in found.terms:
        assert_close(term.units.sum(1), term.total, size)
        if term.name not in found.layers:
            assert torch.equal(found.by_unit(term.name), term.units)
    if frozen.inputs[0].output.ndim == 4:
        assert_close(found.by_location().flatten(1).sum(1), expected.bias, size)
        assert_close((found.by_location() + found.weight_map()).flatten(1).sum(1), expected.value, size)
        placed = sum((term.places.flatten(1).sum(1) for term in found.terms if term.places is not None), zero)
        assert_close(placed + found.unplaced, expected.bias, size)
    return found


def assert_mass_adds_up(mass: PathMass, frozen: Frozen, every_level: bool) -> None:
    """The paths through the units of a level are all paths; where a path may miss a level, no more than all."""
    assert_close(mass.positive + mass.negative, mass.total, mass.mass)
    for level in frozen.levels(frozen.layers):
        for half, all_ in ((0, mass.positive), (1, mass.negative)):
            through = sum(mass.units[layer.name][half].flatten(1).sum(1) for layer in level if layer.name in mass.units)
            if every_level:
                assert_close(through, all_, mass.mass)
            else:
                assert (through.abs() <= all_.abs() + 1e-10 * mass.mass).all()


def assert_same_answer(got: Mapping[Hashable, Tensor], expected: Mapping[Hashable, Tensor], size: float) -> None:
    """The same names in both, and under each the same numbers, relative to the largest or to ``size``."""
    assert got.keys() == expected.keys(), got.keys() ^ expected.keys()
    for name, value in expected.items():
        assert (got[name] == value).all() or not assert_close(got[name], value, size), name


@contextmanager
def assert_untouched(model: nn.Module) -> Iterator[None]:
    """The model, autograd's modes and the random state are afterwards what they were."""

    def state() -> dict[str, object]:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return {
            "identity": {name: id(t) for name, t in tensors},
            "storage": {name: t.data_ptr() for name, t in tensors},
            "requires_grad": {name: t.requires_grad for name, t in tensors},
            "is_leaf": {name: t.is_leaf for name, t in tensors},
            "grad": {name: id(t.grad) for name, t in tensors},
            "flags": {name: m.training for name, m in model.named_modules()},
            "attributes": {name: sorted(m.__dict__) for name, m in model.named_modules()},
            "hooks": {
                name: [len(getattr(m, key)) for key in sorted(vars(m)) if key.endswith("hooks")]
                for name, m in model.named_modules()
            },
            "tensor_hooks": {name: len(t._backward_hooks or ()) for name, t in tensors},
            "global_hooks": [len(v) for k, v in sorted(vars(module_globals).items()) if k.startswith("_global_") and v
                             is not None and hasattr(v, "__len__")],
            "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
            "function_modes": torch._C._len_torch_function_stack(),
        }  # fmt: skip

    tensors = [*model.named_parameters(), *model.named_buffers()]
    values = {name: t.detach().clone() for name, t in tensors}
    grads = {name: None if t.grad is None else t.grad.clone() for name, t in tensors if t.is_leaf}
    before, random = state(), torch.get_rng_state()
    yield
    after = state()
    for key, value in before.items():
        assert after[key] == value, f"{key} changed"
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(t, values[name]), f"{name} changed"
        if name in grads and grads[name] is not None:
            assert torch.equal(t.grad, grads[name]), f"gradient of {name} changed"
    assert torch.equal(torch.get_rng_state(), random), "the random state changed"
