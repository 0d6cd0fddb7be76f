"""Record one forward pass: freeze every operation at the input, note layers, constants and what was met."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from ._calls import Call, inside, leaves
from ._gates import TABLE, Rule, tested
from ._marks import Mark, gating, mark_of, marked
from ._places import line, numbered, own_tensors
from ._saved import Savings, load
from ._straight import NotAffine
from ._units import Layer
from .errors import UnknownLayerError, UnsupportedOperation


class Operation(NamedTuple):
    """One operation of the forward pass that a signal went through.

    Attributes:
        name: the function, such as ``conv2d``.
        module: path of the module that called it.
        kind: how it is straight at the input: ``affine``, ``piece``, ``gate``, or ``tested`` for a function that is
            not in the table and was found affine at the input by a numeric test.
    """

    name: str
    module: str
    kind: str


@dataclass(frozen=True, eq=False)
class Source:
    """A constant that is added to a signal: a bias, a batch-norm shift, the intercept of a piece.

    Attributes:
        name: the parameter's name, or the operation that adds the constant.
        edge: where the sum stands in the autograd graph.
        constant: what is added, broadcast to the sum's shape.
    """

    name: str
    edge: GradientEdge = field(repr=False)
    constant: Float[Tensor, "..."] = field(repr=False)


class Recorder(TorchFunctionMode):
    """Runs a model's operations straightened at the input.

    Inside, ``requires_grad`` says one thing only: the tensor depends on the input. Parameters are passed on detached
    (the same storage), so nothing is copied and no parameter's gradient is touched.

    Args:
        paths: the model's modules with their paths.
        wanted: names of the layers to record; None records the output of every activation function.
    """

    def __init__(self, paths: Mapping[nn.Module, str], wanted: frozenset[str] | None, carry: str | None = None) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.sources: list[Source] = []
        self.operations: list[Operation] = []
        self._wanted = wanted
        self._carry = carry
        self._paths = paths
        own = [(f"{path}.{name}".strip("."), t) for module, path in paths.items() for name, t in own_tensors(module)]
        self._constants = {t.data_ptr(): name for name, t in own}
        self._own = {t.untyped_storage().data_ptr(): name for name, t in own if t.numel()}
        self._stack: list[tuple[nn.Module, str]] = []
        self._calls: Counter[str] = Counter()
        self._known: set[Any] = set()
        self._versions: dict[Layer, int] = {}
        self._latest: tuple[Tensor, str] | None = None
        self._savings = Savings()
        self._marks = False
        self._positions: dict[int, list[int]] = {}

    @contextmanager
    def recording(self, *inputs: Tensor) -> Iterator[Recorder]:
        """Record what runs inside; the inputs are the first signals.

        Raises:
            UnsupportedOperation: an operation is not affine at the input, or cannot be seen.
        """
        thread = threading.get_ident()

        def enter(module: nn.Module, _args: Any) -> None:
            if threading.get_ident() == thread and module in self._paths:
                path = self._paths[module]
                self._calls[path] += 1
                self._stack.append((module, numbered(path, self._calls[path])))

        def leave(module: nn.Module, _args: Any, output: Any) -> None:
            if threading.get_ident() == thread and module in self._paths:
                with torch._C.DisableTorchFunction():
                    self._module_done(*self._stack.pop(), output)

        hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
        try:
            for signal in inputs:
                self._admit(signal)
            with torch.autograd.graph.saved_tensors_hooks(self._savings.save, load), self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()
            self._known.clear()
            self._latest = None
        for layer in self.layers:
            if layer.output._version != self._versions[layer]:
                raise self._refusal("an in-place operation", f"it overwrote the output of layer {layer.name!r} unseen")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function: plainly on constants, by its rule on signals."""
        call = Call(func, args, kwargs or {}, self._carry)
        mutates = call.mutates
        if mutates:
            self._before_write(call)
        call = call.on(self._constant_or_signal)
        marks = [mark for mark in map(mark_of, call.tensors) if mark is not None] if self._marks else []
        if not call.signals:
            return self._marked(call, marks) if marks else func(*call.args, **call.kwargs)
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            return self._straight(call, mutates, marks)
        with torch.inference_mode(False), torch.enable_grad():
            return self._straight(call, mutates, marks)

    def _straight(self, call: Call, mutates: bool, marks: Sequence[Mark]) -> Any:
        """Run a call on signals by its rule; where it has none that is exact, its output is bent."""
        rule = TABLE.get(call.func, _TESTED)
        if rule.kind == "composite":
            with self:
                return inside(call.func)(*call.args, **call.kwargs)
        bent = next((mark.refusal for mark in marks if mark.kind == "bent"), None)
        if bent is not None:
            return self._bend(call, mutates, bent)
        if marks and not (rule.scales or rule.kind in ("gate", "scale")):
            return self._bend(call, mutates, marks[0].refusal)
        try:
            to_view = mutates and call.first._is_view()
            output = self._write_to_view(call, rule) if to_view else self._run(call, rule)
        except NotAffine as reason:
            return self._bend(call, mutates, self._refusal(call.name, str(reason)))
        return None if call.func is torch.Tensor.__setitem__ else output

    def _bend(self, call: Call, mutates: bool, refusal: UnsupportedOperation) -> Any:
        """Run a call that is not affine on plain values; an error only if its output has to be a signal.

        Raises:
            UnsupportedOperation: it would write to a signal, or gives a plain number.
        """
        if mutates or TABLE.get(call.func, _TESTED).kind in ("number", "refused"):
            raise refusal
        self._marks = True
        with torch.no_grad():
            return marked(call.on(torch.Tensor.detach)(), Mark("bent", refusal))

    def _marked(self, call: Call, marks: Sequence[Mark]) -> Any:
        """Run a call on gates, bent tensors and constants: what comes out is again one of these.

        Raises:
            UnsupportedOperation: a plain number is taken out of them.
        """
        rule = TABLE.get(call.func, _TESTED)
        mark = next((mark for mark in marks if mark.kind == "bent"), marks[0])
        if rule.kind == "composite":
            with self:
                return inside(call.func)(*call.args, **call.kwargs)
        output = call.func(*call.args, **call.kwargs)
        if rule.kind == "number" and isinstance(output, float | list):
            raise mark.refusal
        if call.mutates:
            for written in (call.first, call.first._base):
                if written is not None:
                    marked(written, mark)
        if rule.kind == "frozen":
            mark = Mark("gate", mark.refusal)
        return marked(output, mark)

    def _run(self, call: Call, rule: Rule) -> Any:
        """Run a call by its rule and note what came out."""
        mapped = rule.linear_map and call.first.requires_grad and not call.argument(1, "weight").requires_grad
        self._savings.shape_only = call.first if mapped else None
        try:
            output, constant = rule.freeze(call)
        finally:
            self._savings.shape_only = None
        signals = [t for t in leaves(output) if t.requires_grad and t.grad_fn is not None]
        if not signals and rule.kind == "frozen":
            self._marks = True
            reason = "it is a gate: frozen at the input, it can scale a signal but not be one"
            return marked(output, Mark("gate", self._refusal(call.name, reason)))
        if not signals:
            if rule.kind == "tested" and any(t.is_floating_point() for t in leaves(output)):
                raise NotAffine("it copies a signal's values without their dependence on the input")
            return output
        passed = gating(call.signals[0]) if len(call.signals) == 1 and (rule.rearranges or rule.scales) else 0
        rank = rule.gating or int(rule.activation) or passed
        if rank:
            for signal in signals:
                signal._relupath_gating = rank  # type: ignore[attr-defined]
        path = self._path
        self.operations.append(Operation(call.name, path, rule.kind))
        for signal in signals:
            self._admit(signal)
        if constant is not None:
            name = self._name_of_constant(call, path)
            for signal, c in zip(leaves(output), leaves(constant), strict=True):
                if signal.requires_grad:
                    self.sources.append(Source(name, get_gradient_edge(signal), c.detach()))
        place = f"{path}:{call.name}"
        self._calls[place] += 1
        name = numbered(place, self._calls[place])
        if name in self._wanted if self._wanted is not None else rule.activation:
            self._add_layer(name, signals[0])
        return output

    def _write_to_view(self, call: Call, rule: Rule) -> Tensor:
        """Write in place to a view: run on a copy first, so that the graph node noted is the operation's own."""
        target, base = call.first, call.first._base
        copy, rest = target.clone(), None
        self._admit(copy)
        if base is not None and not base.requires_grad:
            rest = base.clone()
            rest.as_strided(target.shape, target.stride(), target.storage_offset() - base.storage_offset()).zero_()
        written = self._run(call.on(lambda t: copy if t is target else t), rule)
        try:
            target.copy_(written)
        except RuntimeError as error:
            raise NotAffine(f"autograd refuses to write to that view ({str(error).splitlines()[0]})") from error
        self._admit(target)
        if base is not None:
            self._admit(base)
            if rest is not None:
                self.sources.append(Source(f"{self._path}:{call.name}", get_gradient_edge(base), rest))
        return target

    def signal(self, t: Tensor) -> Tensor | None:
        """The tensor if it depends on the input, else None.

        Raises:
            UnsupportedOperation: it came from an operation that could not be seen.
        """
        with torch._C.DisableTorchFunction():
            mark = mark_of(t)
            if mark is not None:
                raise mark.refusal
            t = self._constant_or_signal(t)
            return t if t.requires_grad else None

    def _constant_or_signal(self, t: Tensor) -> Tensor:
        """Detach what requires grad without depending on the input; refuse what came from an unseen operation."""
        if not t.requires_grad or t.grad_fn in self._known:
            return t
        if t.grad_fn is None:
            return t.detach()
        if t._base is not None and self._is_view(t.grad_fn):
            self._admit(t)
            return t
        if not self._reaches_input(t.grad_fn):
            return t.detach()
        raise self._refusal(
            t.grad_fn.name(), "it ran unseen (a custom autograd function or a compiled or scripted module)"
        )

    def _is_view(self, node: Any) -> bool:
        """Whether torch's own view operations alone lead from known signals to a graph node."""
        while node is not None and node not in self._known:
            if node.name() not in VIEWS:
                return False
            node = node.next_functions[0][0]
        return node is not None

    def _reaches_input(self, node: Any) -> bool:
        """Whether a graph node depends on a known signal."""
        todo, seen = [node], set()
        while todo:
            node = todo.pop()
            if node in self._known:
                return True
            if node is not None and node not in seen:
                seen.add(node)
                todo += [parent for parent, _ in node.next_functions]
        return False

    def _before_write(self, call: Call) -> None:
        """Refuse writes to the model; keep the values of recorded layers and of tensors saved for derivatives."""
        if not call.tensors:
            return
        target = call.first
        storage = target.untyped_storage().data_ptr()
        if storage in self._own:
            raise self._refusal(
                call.name, f"it writes to {self._own[storage]!r} of the model, which must stay as it is"
            )
        for position in self._positions.pop(storage, ()):
            layer = self.layers[position]
            self.layers[position] = self._noted(Layer(layer.name, layer.output.clone(), layer.edge))
        self._savings.about_to_write(storage)

    def _module_done(self, module: nn.Module, name: str, output: Any) -> None:
        """Note a module's output if it is wanted; an activation that is a module of its own bears the module's name."""
        if self._wanted is None:
            own = self._latest is not None and output is self._latest[0] and name == self._latest[1]
            if own and not any(module.children()):
                layer = self.layers[-1]
                self.layers[-1] = self._noted(Layer(name, layer.output, layer.edge))
        elif name in self._wanted and output is not None:
            if not isinstance(output, Tensor) or not output.requires_grad:
                raise UnknownLayerError(
                    f"module {name!r} returns {type(output).__name__}, not a tensor that depends on the input"
                )
            self._add_layer(name, output)

    def _add_layer(self, name: str, signal: Tensor) -> None:
        self._latest = (signal, self._path)
        self._positions.setdefault(signal.untyped_storage().data_ptr(), []).append(len(self.layers))
        self.layers.append(self._noted(Layer(name, signal.detach(), get_gradient_edge(signal))))

    def _noted(self, layer: Layer) -> Layer:
        self._versions[layer] = layer.output._version
        return layer

    def _admit(self, signal: Tensor) -> None:
        """Take a tensor's place in the autograd graph as understood."""
        if signal.grad_fn is not None:
            self._known.add(signal.grad_fn)

    @property
    def _path(self) -> str:
        """The module call that is running."""
        return self._stack[-1][1] if self._stack else ""

    def _name_of_constant(self, call: Call, path: str) -> str:
        names = [self._constants.get(t.data_ptr()) for t in call.tensors if not t.requires_grad]
        found = [name for name in names if name is not None]
        return found[-1] if found and call.name not in ("batch_norm",) else f"{path}:{call.name}"

    def _refusal(self, operation: str, reason: str) -> UnsupportedOperation:
        path = self._path
        return UnsupportedOperation(
            f"{operation} in module {path or '(the model itself)'!r}{line()} cannot be explained exactly: {reason}. "
            "Expected an operation that at one input is affine, piecewise linear, or a gate x*phi(x). "
            "Replace it by such operations, or explain an output that comes before it (freeze's output=...)."
        )


VIEWS = frozenset(
    f"{name}Backward0"
    for name in (
        *("AsStrided", "View", "UnsafeView", "ReshapeAlias", "Alias", "Slice", "Select", "Transpose", "T", "Permute"),
        *("Squeeze", "Unsqueeze", "Expand", "Diagonal", "Unfold", "Split", "SplitWithSizes", "Unbind"),
    )
)
"""Graph nodes that autograd makes anew for the views of a tensor that was written to."""

_TESTED = Rule("tested", tested)
