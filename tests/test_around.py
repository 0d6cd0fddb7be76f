"""Around a recording: faults are located, errors are in words, the model and torch are left as they were."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize as parametrize
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from asserts import assert_complete, assert_same_model, assert_untouched
from nets import Lambda, example, randomise
from relupath import Exact, Path, find_paths, freeze, linear_model, linear_models
from relupath._gates import TABLE
from relupath.errors import IncompleteError, ModelError, RelupathError, UnsupportedOperation
from test_detection import LIES, LIVE, Residual, Sines, Site, assert_found_or_right, assert_found_out, holding, quietly
from test_usage import Checkpointed, Tokens


def lin(i: int, o: int) -> nn.Linear:
    return nn.Linear(i, o)


# --- located: behind skips, too, the operation at fault is named ---


class Dense(nn.Module):
    """What comes out stands beside what went in."""

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.fc, self.join = lin(4, 4), lin(8, 4)

    def forward(self, h: Tensor) -> Tensor:
        return self.join(torch.cat([h, F.leaky_relu(self.fc(h))], 1))


@pytest.mark.parametrize("block", [Residual, Dense])
@pytest.mark.parametrize("case", LIES)
def test_the_rule_that_lies_is_named_behind_skips(case, block, monkeypatch):
    """Of h + f(h) the derivative with respect to h also runs through f(h): a rule is tested on leaves of its own."""
    function, rule, operation = LIES[case]
    monkeypatch.setitem(TABLE, function, rule)
    parts = [lin(4, 4), block(random.Random(0), LIVE), Site(), lin(4, 4)]
    parts[2].operation = operation
    frozen = freeze(randomise(nn.Sequential(*parts), 0), example((4,), 7))
    assert_found_out(frozen, rf"{function.__name__} in module '2' \(test_detection\.py:\d+\)")


# --- gradient checkpointing without reentrance ---


def test_a_checkpointed_sequence():
    model = randomise(nn.Sequential(lin(5, 4), nn.ReLU(), lin(4, 4), nn.GELU(), lin(4, 3)), 1)
    holder = Lambda(lambda m, v: checkpoint_sequential(m.inner, 2, v, use_reentrant=False), inner=model).eval()
    assert_complete(freeze(holder, example((5,), 1)), 0)


def test_a_checkpointed_block_with_an_in_place_relu():
    model = randomise(Checkpointed(lambda h: F.relu(h + 0, inplace=True), False), 1)
    assert_complete(freeze(model, example((5,), 1)), 0)


# --- exact or refused, never silently wrong ---


def _single(h: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction(), torch.no_grad():
        return torch.sin(h.float()).double()


LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "unseen, in single precision": _single,
    "a derivative taken in the forward": lambda h: torch.autograd.functional.jacobian(lambda v: (v**2).sum(), h),
}


@pytest.mark.parametrize("case", LOST)
def test_lost_dependence_is_never_silently_constant(case):
    """What computes in float32 stands still unless check() moves the input by more than float32 resolves.

    In a forward, torch.autograd.grad gives zeros for a tensor that is not followed, so it is refused.
    """
    assert_found_or_right(LOST[case])


# --- in words, where the model runs and torch cannot record it ---


def _energy(h: Tensor) -> Tensor:
    with torch.enable_grad():
        z = h.detach().clone().requires_grad_()
        return torch.autograd.grad((z**2).sum(), z)[0]


def _backward(h: Tensor) -> Tensor:
    with torch.enable_grad():
        z = h.detach().clone().requires_grad_()
        (z**2).sum().backward()
        return z.grad


def _forward_mode(h: Tensor) -> Tensor:
    ad = torch.autograd.forward_ad
    with ad.dual_level():
        return ad.unpack_dual(torch.sin(ad.make_dual(h.detach(), torch.ones_like(h)))).tangent


def _flex(h: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    parts = h.float().view(2, 1, 2, 2)
    return flex_attention(parts, parts, parts).double().view(2, 4)


FIXED = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4)
RAW: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.func.grad": lambda h: torch.func.grad(lambda v: (v**3).sum())(h),
    "torch.func.jvp": lambda h: torch.func.jvp(torch.sin, (h,), (h,))[0],
    "torch.func.vjp": lambda h: torch.func.vjp(torch.relu, h)[0],
    "torch.autograd.grad": _energy,
    "backward": _backward,
    "the out overload of aten": lambda h: torch.ops.aten.sin.out(h, out=torch.empty_like(h)),
    "mkldnn": lambda h: h.float().to_mkldnn().to_dense().double(),
    "a sparse signal": lambda h: h.to_sparse().to_dense(),
    "nested": quietly(lambda h: torch.nested.as_nested_tensor([h[0], h[1]]).to_padded_tensor(0.0)),
    "deepcopy": lambda h: copy.deepcopy(h.detach()) * 1,
    "a fill value": lambda h: torch.full_like(h, h.sum()),
    "a slope": lambda h: F.leaky_relu(h, h.sum().abs()),
    "a factor of add": lambda h: torch.add(h, h, alpha=h.sum()),
    "swap_tensors": lambda h: (lambda a, b: (torch.utils.swap_tensors(a, b), a)[1])(h * 1, torch.sin(h)),
    "torch.cond": lambda h: torch.cond(h.sum() > 0, lambda v: v * 2, lambda v: v * 3, (h,)),
    "flex_attention": quietly(_flex),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", RAW)
def test_what_the_model_can_do_is_exact_or_refused_in_words(case):
    """Where torch refuses derivatives or hooks on what it saves, the user reads the module's name in our own words."""
    operation = RAW[case]
    parts = {"fc": lin(5, 4), "plant": Lambda(lambda m, h: operation(h)), "tail": lin(4, 3)}
    model = randomise(Lambda(lambda m, x: m.tail(m.plant(m.fc(x))), **parts), 3)
    x = example((5,), 5)
    with torch.no_grad():
        model(x)
    try:
        frozen = freeze(model, x)
        assert_complete(frozen, 0)
    except RelupathError as error:
        assert "plant" in str(error)  # noqa: PT017


# --- writes to a signal are located ---


@torch.library.custom_op("relupath_around::sine_", mutates_args={"h"})
def sine_in_place(h: Tensor) -> None:
    h.sin_()


def _through_operator(h: Tensor) -> Tensor:
    y = h * 1
    sine_in_place(y)
    return y


def _through_storage(h: Tensor) -> Tensor:
    y = h * 1
    with torch._C.DisableTorchFunction(), torch.no_grad():
        torch.empty(0, dtype=y.dtype).set_(y.untyped_storage(), 0, y.shape, y.stride()).sin_()
    return y


@pytest.mark.parametrize("write", [_through_operator])
@pytest.mark.parametrize("branch", [False, True])
def test_an_unseen_write_is_found_and_located(write, branch):
    """An operator's schema, not its name, says what it writes to; unnoticed, an innocent operation would be blamed."""
    parts = {"fc": lin(5, 4), "plant": Lambda(lambda m, h: write(h)), "tail": lin(8 if branch else 4, 3)}

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.fc(x)
        return m.tail(torch.cat([m.plant(h), h], 1) if branch else m.plant(h))

    with pytest.raises(RelupathError, match=r"in module 'plant' \(test_around\.py:\d+\)"):
        linear_model(freeze(randomise(Lambda(forward, **parts), 3), example((5,), 5)), 0)


# --- the model, and torch, as they were ---


def test_an_embedding_that_bounds_its_norms_is_left_alone():
    """F.embedding(max_norm=...) writes to the weight under no_grad, in a call without a signal that would show it."""
    model = Tokens()
    model.words = nn.Embedding(7, 4, max_norm=0.5)
    with assert_untouched(randomise(model, 0)):
        try:
            assert_complete(freeze(model, torch.tensor([[1, 2], [3, 4]]), inputs="words"), 0)
        except UnsupportedOperation as error:
            assert "must stay as it is" in str(error)  # noqa: PT017


def test_a_cached_parametrisation_keeps_its_graph():
    """Weights computed while recording have no gradient: left in the cache, they would never be trained."""
    model = randomise(nn.Sequential(lin(5, 4), nn.ReLU(), lin(4, 3)), 1)
    nn.utils.parametrizations.weight_norm(model[0])
    model.eval()
    with parametrize.cached():
        assert_complete(freeze(model, example((5,), 1)), 0)
        model(example((5,), 1)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_one_model_frozen_in_several_threads_keeps_its_hooks():
    """The second recording begins while the first is under way: it must not take suspended hooks for the user's."""
    first, second, model = threading.Event(), threading.Event(), nn.Sequential(lin(5, 4), nn.ReLU(), lin(4, 3))
    model[0].register_full_backward_hook(lambda *a: None)
    before = dict(model[0]._backward_hooks)
    model[1].register_forward_hook(lambda *a: (first.set(), second.wait(0.5))[2:] or None)
    workers = [
        threading.Thread(target=lambda: freeze(model, example((5,), 1))),
        threading.Thread(target=lambda: (first.wait(5), freeze(model, example((5,), 1)), second.set())),
    ]
    randomise(model, 1)
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert dict(model[0]._backward_hooks) == before


def test_overlapping_recordings_leave_what_the_process_shares_as_it_was():
    """One that began while another ran would restore that one's state, not the user's, if it ended last."""
    import torch._dynamo.eval_frame as dynamo

    a_in, b_in, a_out = (threading.Event() for _ in range(3))
    a = randomise(Lambda(lambda m, x: (a_in.set(), b_in.wait(1), m.fc(x))[2], fc=lin(5, 3)), 0)
    b = randomise(Lambda(lambda m, x: (b_in.set(), a_out.wait(1), torch.rand(3), m.fc(x))[3], fc=lin(5, 3)), 0)
    x = example((5,), 1)
    workers = [
        threading.Thread(target=lambda: (freeze(a, x), a_out.set())),
        threading.Thread(target=lambda: (a_in.wait(5), freeze(b, x))),
    ]
    filters, state = [*warnings.filters], torch.get_rng_state()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stance, found = dynamo._stance.stance, [*warnings.filters]
    torch.compiler.set_stance("default")
    warnings.filters[:] = filters
    assert stance == "default"
    assert found == filters
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("act", [torch.sin])
def test_a_forward_that_compiles_for_the_first_time(act):
    """Such a forward loads dynamo under the recorder: it is refused in words, not by an AssertionError of dynamo's."""
    code = (
        "import torch, relupath\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(3, 3)\n"
        "    def forward(self, x):\n"
        f"        return torch.compile(lambda h: torch.{act.__name__}(h), backend='eager')(self.fc(x))\n"
        "try:\n"
        "    relupath.linear_model(relupath.freeze(Net().eval(), torch.ones(1, 3)), 0)\n"
        "    print('exact')\n"
        "except relupath.errors.UnsupportedOperation as refusal:\n"
        "    print('refused', refusal)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.startswith("refused"), run.stderr[-500:]


def test_a_compiled_submodule_gives_no_warning():
    """torch warns of global module hooks at a compiled module; those of the recording are not the user's."""
    inner = Sines(F.relu)
    model = holding(torch.compile(inner, backend="eager"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freeze(model, example((4,), 1))


# --- the list of operations, and what is explained ---


def test_the_recorders_own_operations_are_not_listed():
    """What autograd saves for an unseen operation is detached in passing, which is no operation of the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(_sine_for_script)
    parts = {"fc": lin(5, 4), "tail": lin(4, 3)}
    model = randomise(Lambda(lambda m, x: (lambda h: m.tail(h * torch.sigmoid(script(h))))(m.fc(x)), **parts), 3)
    frozen = freeze(model, example((5,), 5))
    assert "detach" not in [op.name for op in frozen.operations]


def _sine_for_script(h):
    return torch.sin(h)


def test_an_unseen_operation_before_a_gate_is_listed():
    """Every operation met is listed, also one that ran unseen and is allowed because it only makes a gate."""
    parts = {"fc": lin(5, 4), "tail": lin(4, 3)}

    def unseen(h: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return torch.sin(h)

    model = randomise(Lambda(lambda m, x: (lambda h: m.tail(h * torch.sigmoid(unseen(h))))(m.fc(x)), **parts), 3)
    frozen = freeze(model, example((5,), 5))
    assert any("sin" in op.name.lower() for op in frozen.operations)


@pytest.mark.parametrize("inner", ["product", "sin"])
def test_an_activation_does_not_launder_what_is_not_affine(inner):
    """A product of two explained inputs, or a sine, that goes through a ReLU and is then multiplied, is no gate.

    Taken for one, it would give the nodes of a graph network the weight 0 without a word.
    """
    parts = {"one": lin(3, 4), "two": lin(4, 4), "out": lin(4, 3)}

    def forward(m: Any, nodes: Tensor, edges: Tensor) -> Tensor:
        h = F.relu(edges @ m.one(nodes) if inner == "product" else torch.sin(m.one(nodes)))
        return m.out(F.relu(edges @ m.two(h)).mean(1))

    model = randomise(Lambda(forward, **parts), 3)
    nodes, edges = example((5, 3), 1), example((5, 5), 2)
    with pytest.raises(UnsupportedOperation, match=r"matmul.*carry='first'" if inner == "product" else "sin"):
        freeze(model, (nodes, edges))


def test_one_token_a_sample():
    """With inputs= the arguments are not explained themselves, so that one axis is enough."""
    model = randomise(nn.Sequential(nn.Embedding(5, 4), nn.ReLU(), lin(4, 3)), 0)
    assert_complete(freeze(model, torch.tensor([2, 0, 4]), inputs="embeddings"), 0)


# --- check() runs the model again, as it then is ---

LATER: dict[str, Callable[[nn.Module], Any]] = {
    "training mode": lambda m: m.train(),
    "another number format": lambda m: m.float(),
    "another layer": lambda m: m.__setitem__(1, nn.Flatten(0)),
    "a hook that raises": lambda m: m.register_forward_hook(lambda *_: 1 / 0),
}


@pytest.mark.parametrize("case", LATER)
def test_check_of_a_recording_works_or_says_that_the_model_was_changed(case):
    """The recording stays whole when the model is changed, but check() runs the model as it now is."""
    model = randomise(nn.Sequential(lin(5, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Dropout(), lin(4, 3)), 0)
    frozen = freeze(model, example((5,), 1))
    expected = linear_model(frozen, 0)
    LATER[case](model)
    assert_same_model(linear_model(frozen, 0), expected)
    with assert_untouched(model):
        try:
            frozen.check(0)
        except ModelError as error:
            assert "freeze again" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.fc(x) * (2 if torch.is_grad_enabled() else 1),
        lambda m, x: m.fc(x) * (2 if m.fc(x).requires_grad else 1),
        lambda m, x: m.fc(x) + (not torch.overrides._get_current_function_mode()),
    ],
    ids=["grad mode", "requires_grad", "function mode"],
)
def test_a_forward_that_asks_whether_it_is_recorded_is_found_out(forward):
    frozen = freeze(randomise(Lambda(forward, fc=lin(5, 3)), 0), example((5,), 1))
    with pytest.raises(IncompleteError, match="not what the model gives by itself"):
        frozen.check(0)


def test_a_model_that_changes_after_its_first_call_is_found_out():
    calls = []

    def forward(m, x):
        calls.append(1)
        return m.fc(x) * (1 if len(calls) == 1 else 2)

    frozen = freeze(randomise(Lambda(forward, fc=lin(5, 3)), 0), example((5,), 1))
    with pytest.raises(IncompleteError, match=r"not what the model gives by itself .* its forward pass changes"):
        frozen.check(0)


@pytest.mark.parametrize("inside", [False, True])
def test_check_runs_under_the_autocast_of_the_recording(inside):
    formats = []

    def forward(m, x):
        y = m.fc(x)
        formats.append((y.dtype, torch.is_autocast_enabled("cpu")))
        return y

    model = randomise(Lambda(forward, fc=lin(5, 3)), 0, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frozen = freeze(model, example((5,), 1).float())
        if inside:
            frozen.check(0)
            model(example((5,), 1).float()).sum().backward()
            assert model.fc.weight.grad is not None
    if not inside:
        frozen.check(0)
        assert not torch.is_autocast_enabled("cpu")
    assert set(formats) == {(torch.bfloat16, True)}


def test_what_is_asked_under_autocast_is_computed_as_it_was_recorded():
    parts = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)]
    frozen = freeze(randomise(nn.Sequential(*parts), 0, torch.float32), example((2, 8, 8), 0, 1, torch.float32))
    paths = [Path.of([("3", (c, 1, 1))]) for c in range(6)]

    def asked():
        found = find_paths(frozen, 0, Exact())
        return linear_model(frozen, 0).weight, linear_models(frozen, paths, 0).weight, found.value

    expected = asked()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for got, own in zip(asked(), expected, strict=True):
            assert torch.equal(got, own)


@pytest.mark.parametrize("kind", [torch.complex64, torch.complex128])
def test_a_model_of_complex_numbers_that_was_changed_says_so(kind):
    model = Lambda(lambda m, x: torch.view_as_real((m.fc(x) + 0j).to(kind) * m.turn).flatten(1).double(), fc=lin(5, 3))
    model.turn = torch.ones(3, dtype=kind) * (1 + 2j)
    frozen = freeze(randomise(model, 0), example((5,), 1))
    frozen.check(0)
    model.fc.weight.data.add_(1)
    with pytest.raises(IncompleteError, match="freeze again"):
        frozen.check(0)
    with pytest.raises(IncompleteError, match="not understood"):
        linear_model(frozen, 0)


def test_a_model_that_no_longer_runs_does_not_hide_that_it_was_not_understood():
    model = randomise(nn.Sequential(lin(5, 4), nn.ReLU(), lin(4, 3)), 0)
    frozen = freeze(model, example((5,), 1))
    model[2].weight.data.add_(1)
    model[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(IncompleteError, match=r"not understood: .* freeze again \(ZeroDivisionError"):
        linear_model(frozen, 0)


# --- 9. what is the model's own ---


def write_unseen(target: Tensor, value: Tensor) -> None:
    with torch._C.DisableTorchFunction(), torch.no_grad():
        target.copy_(value.abs().sum(0))


def test_an_unseen_write_to_a_buffer_is_refused_and_undone():
    def forward(m, x):
        write_unseen(m.buf, x)
        return m.fc(x + m.buf)

    model = randomise(Lambda(forward, fc=lin(5, 3), buf=torch.ones(5)), 0)
    with (
        assert_untouched(model),
        pytest.raises(UnsupportedOperation, match="it writes to 'buf' of the model, which must"),
    ):
        freeze(model, example((5,), 1))


def test_an_unseen_write_to_a_buffer_is_undone_when_the_forward_raises():
    def forward(m, x):
        write_unseen(m.buf, x)
        return m.fc(x) @ x

    model = randomise(Lambda(forward, fc=lin(5, 3), buf=torch.ones(5)), 0)
    with assert_untouched(model), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        freeze(model, example((5,), 1))


ATTRIBUTES: dict[str, Callable[[Any, Tensor], Any]] = {
    "a gate": lambda m, x: m.plain.copy_(torch.sigmoid(x)),
    "a signal": lambda m, x: m.plain.__setitem__(..., x),
    "a counter": lambda m, x: m.count.add_(1),
    "in a list": lambda m, x: m.several[0].copy_(x),
    "in a dictionary": lambda m, x: m.named["cache"].copy_(x),
    "unseen": lambda m, x: write_unseen(m.plain, x),
}


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_a_plain_tensor_attribute_is_the_models_own(case):
    model = randomise(Lambda(lambda m, x: (ATTRIBUTES[case](m, x), m.fc(x + m.plain))[1], fc=lin(5, 3)), 0)
    own = [torch.zeros(2, 5, dtype=torch.float64) for _ in range(4)]
    model.plain, model.count, model.several, model.named = own[0], own[1], (own[2],), {"cache": own[3]}
    with assert_untouched(model), pytest.raises(UnsupportedOperation, match="of the model, which must stay as it is"):
        freeze(model, example((5,), 1))
    for t in own:
        assert not t.any()
        assert not t.requires_grad
        assert not vars(t)


def test_an_attribute_that_is_replaced_is_put_back():
    model = randomise(Lambda(lambda m, x: (setattr(m, "last", m.fc(x)), m.last * 2)[1], fc=lin(5, 3)), 0)
    model.last = before = torch.zeros(2, 3)
    assert_complete(freeze(model, example((5,), 1)), 0)
    assert model.last is before


class Cache:
    """Grows, as a cache of keys and values does."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []


def test_arguments_to_which_the_model_writes_are_left_as_they_were():
    def forward(m, x, memory, cache, named):
        memory[:, 0] = x[:, 0]
        named["more"].append(x)
        cache.steps.append(x)
        return m.fc(memory + named["memory"] + len(cache.steps) + len(named["more"]))

    memory, cache = torch.zeros(2, 5, dtype=torch.float64), Cache()
    named: dict[str, Any] = {"memory": memory, "more": []}
    frozen = freeze(
        randomise(Lambda(forward, fc=lin(5, 3)), 0), example((5,), 1), memory, kwargs={"cache": cache, "named": named}
    )
    assert_complete(frozen, 0)
    assert not memory.any()
    assert not memory.requires_grad
    assert not vars(memory)
    assert cache.steps == named["more"] == []


def test_what_cannot_be_copied_is_passed_as_it_is():
    lock = threading.Lock()
    model = randomise(Lambda(lambda m, x, lock: m.fc(x) * (1 + lock.locked()), fc=lin(5, 3)), 0)
    assert_complete(freeze(model, example((5,), 1), lock), 0)


@pytest.mark.parametrize("sparse", [Tensor.to_sparse, Tensor.to_sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_model_may_hold_a_sparse_matrix(sparse):
    dense = torch.tensor([[0.5, 0.0], [1.0, 2.0]], dtype=torch.float64)
    model = Lambda(lambda m, x: m.fc(torch.sparse.mm(m.matrix, m.first(x).mT).mT), first=lin(5, 2), fc=lin(2, 3))
    model = randomise(model, 0)
    model.register_buffer("matrix", sparse(dense))
    frozen = freeze(model, example((5,), 1))
    frozen.check(0)
    assert torch.allclose(linear_model(frozen, 0).weight[0], model.fc.weight[0] @ dense @ model.first.weight)


def test_a_lazy_model_is_to_be_run_first():
    with pytest.raises(ModelError, match="run it once on an input first"):
        freeze(nn.Sequential(nn.LazyLinear(3)).eval(), example((5,), 1))


def test_of_an_exported_model_the_original_is_asked_for():
    x = example((5,), 1)
    exported = torch.export.export(randomise(nn.Sequential(lin(5, 3)), 0), (x,)).module()
    with pytest.raises(ModelError, match="give the module that was exported"):
        freeze(exported, x)
