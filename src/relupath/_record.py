"""Record one forward pass: freeze every operation at the input, note layers, constants and what was met."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from ._belongings import Belongings
from ._calls import Call, leaves, storage_of
from ._choices import Choices
from ._gates import FORMS, Rule, rule_of
from ._known import Known
from ._marks import Mark, carrying, gating, mark_of, marked, ranked
from ._noted import NotedLayers
from ._places import UNSEEN, Operation, line, line_of, numbered, place, refusal
from ._saved import Savings, load
from ._scales import is_gated_constant, is_root, reciprocal
from ._sources import Source
from ._straight import NotAffine, Straight, Untraceable
from ._units import Layer
from .errors import UnknownLayerError, UnsupportedOperation


class Recorder(TorchFunctionMode):
    """Runs a model's operations straightened at the input.

    Inside, ``requires_grad`` says one thing only: the tensor depends on the input. Parameters are passed on detached
    (the same storage), so nothing is copied and no parameter's gradient is touched.

    Args:
        paths: the model's modules with their paths.
        choices: what the user chose.
    """

    def __init__(self, paths: Mapping[nn.Module, str], choices: Choices) -> None:
        super().__init__()
        self.inputs: list[Layer] = []
        self.layers = NotedLayers()
        self.sources: list[Source] = []
        self.operations: list[Operation] = []
        self.dtypes: set[torch.dtype] = set()
        self.writes_to_views = False
        self._looked_up: set[int] = set()
        self.choices = choices
        self._paths = paths
        self.own = Belongings(paths)
        self._stack: list[tuple[nn.Module, str]] = []
        self._calls: Counter[str] = Counter()
        self._known = Known()
        self.savings = Savings(lean=choices.layers is not None)
        self._marks = False

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Record what runs inside.

        Raises:
            UnsupportedOperation: an operation is not affine at the input, or cannot be seen.
        """
        thread = threading.get_ident()

        def enter(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == thread and module in self._paths:
                with torch._C.DisableTorchFunction():
                    self._look_at(args)
                path = self._paths[module]
                self._calls[path] += 1
                self._stack.append((module, numbered(path, self._calls[path])))

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            if threading.get_ident() != thread or module not in self._paths:
                return None
            with torch._C.DisableTorchFunction():
                try:
                    return self._module_done(*self._stack[-1], args, output)
                finally:
                    self._stack.pop()

        hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.savings.save, load), self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()
            self._known.clear()
            self.layers.forget_tensors()
        for name in self.own.overwritten():
            raise self._write_to(name, "an operation that could not be seen")
        for name in self.layers.overwritten():
            raise self._refusal("an in-place operation", f"it overwrote the output of layer {name!r} unseen")

    def enter(self, name: str, value: Tensor) -> Tensor:
        """Take a value as an explained input; what is returned is its signal."""
        with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.enable_grad():
            leaf = value.detach().clone().requires_grad_()
            self.inputs.append(Layer(name, leaf.detach(), get_gradient_edge(leaf)))
            signal = leaf.clone()
            self._admit(signal)
            return signal

    def explain_lookups_of(self, tokens: Sequence[Tensor]) -> None:
        """Take as explained inputs what nn.Embedding modules give for these tokens."""
        self._looked_up = {storage_of(t) for t in tokens}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function: plainly on constants, by its rule on signals."""
        if func in FORMS:
            return func(*args, **(kwargs or {}))
        if kwargs and isinstance(kwargs.get("out"), Tensor) and not isinstance(func, torch._ops.OpOverload):
            rest = {key: value for key, value in kwargs.items() if key != "out"}
            written, out = self.__torch_function__(func, types, args, rest), kwargs["out"]
            if out.numel() == 0:
                out.resize_(written.shape)  # as torch does
            self.__torch_function__(torch.Tensor.copy_, types, (out, written))
            return out
        call = Call(func, args, kwargs or {}, self.choices.carry)
        rule = rule_of(call)
        mutates = call.mutates
        if mutates:
            self._before_write(call)
        plain = call.on(self._understood)
        if rule.pattern:
            pattern = itertools.count()
            call = call.on(lambda t: t.detach() if next(pattern) else t)
            plain = call.on(self._understood)
        marks = [mark for mark in map(mark_of, call.tensors) if mark is not None] if self._marks else []
        if not marks and not plain.signals:
            return func(*plain.args, **plain.kwargs)
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            return self._dependent(call, plain, rule, marks)
        with torch.inference_mode(False), torch.enable_grad():
            return self._dependent(call, plain, rule, marks)

    def _dependent(self, call: Call, plain: Call, rule: Rule, marks: Sequence[Mark]) -> Any:
        """Run a call on what depends on the input; ``plain`` has gates and bent tensors as constants."""
        if rule.kind == "composite":
            with self:
                return rule.freeze(call)
        if call.writes_by_schema:
            raise self._refusal(call.name, "it is an operator that writes to its arguments")
        return self._straight(plain, rule, marks) if plain.signals else self._marked(call, plain, rule, marks)

    def _straight(self, call: Call, rule: Rule, marks: Sequence[Mark]) -> Any:
        """Run a call on signals by its rule; where it has none that is exact, its output is bent."""
        bent = next((mark.refusal for mark in marks if mark.kind == "bent"), None) if marks else None
        if bent is not None and not rule.absorbs:
            return self._bend(call, rule, bent)
        if marks and not (rule.scales or rule.kind in ("gate", "scale") or all(mark.constant for mark in marks)):
            return self._bend(call, rule, marks[0].refusal)
        try:
            to_view = call.mutates and call.first._is_view()
            output = self._write_to_view(call, rule, marks) if to_view else self._run(call, rule, marks)
        except Untraceable as reason:
            raise self._refusal(call.name, str(reason)) from reason
        except NotAffine as reason:
            return self._bend(call, rule, self._refusal(call.name, str(reason)))
        return None if call.func is torch.Tensor.__setitem__ else output

    def _bend(self, call: Call, rule: Rule, refusal: UnsupportedOperation) -> Any:
        """Run a call that is not affine on plain values; an error only if its output has to be a signal.

        Raises:
            UnsupportedOperation: it would write to a signal, or gives a plain number.
        """
        if call.mutates or rule.kind in ("number", "refused"):
            raise refusal
        with torch.no_grad():
            return self._mark(call, call.on(torch.Tensor.detach)(), rule, Mark("bent", refusal))

    def _marked(self, call: Call, plain: Call, rule: Rule, marks: Sequence[Mark]) -> Any:
        """Run a call on gates, bent tensors and constants: what comes out is again one of these.

        Raises:
            UnsupportedOperation: a plain number is taken out of them.
        """
        mark = next((mark for mark in marks if mark.kind == "bent"), marks[0])
        with torch.no_grad():
            output = plain.func(*plain.args, **plain.kwargs)
        if rule.kind == "number" and isinstance(output, float | list):
            raise mark.refusal
        if not call.mutates:
            constant = all(m.constant for m in marks) or (rule.scales and is_gated_constant(plain, output))
            return self._mark(call, output, rule, replace(mark, constant=constant))
        for written in (call.first, call.first._base):
            if written is not None:
                self._mark(call, written, rule, mark)
        return None if output is None else call.first

    def _mark(self, call: Call, output: Any, rule: Rule, mark: Mark) -> Any:
        """Mark what comes out of a call: what squashes makes a gate, and a norm or a root a scale, of anything."""
        if rule.kind.startswith("frozen") and (rule.freeze is not reciprocal or self.choices.carry):
            mark = replace(mark, kind=rule.kind.removeprefix("frozen "))
        elif mark.kind == "bent" and rule.gating == 2:
            mark = replace(mark, kind="gate")
        elif mark.kind == "bent" and is_root(call):
            mark = replace(mark, kind="scale")
        self._marks = True
        found = marked(output, mark)
        if found:
            self._note(call.name, mark.kind if mark.kind == "bent" else f"frozen {mark.kind}")
        for t in found:
            self._known.admit_marked(t)
        return output

    def _run(self, call: Call, rule: Rule, marks: Sequence[Mark] = ()) -> Any:
        """Run a call by its rule and note what came out."""
        rank, straight = self._rank(call, rule), self._frozen(call, rule)
        signals = [t for t in leaves(straight.output) if t.requires_grad and t.grad_fn is not None]
        if rule.kind.startswith("frozen"):
            kind = rule.kind.removeprefix("frozen ")
            reason = f"it is a {kind}: frozen at the input, it can scale a signal but not be one"
            output = self._overwritten(call, straight.output) if call.mutates else straight.output
            gates = [t for t in leaves(output) if all(t is not signal for signal in signals)]
            self._mark(call, gates, rule, Mark(kind, self._refusal(call.name, reason)))
            if not signals:
                return output
        if not signals:
            if rule.kind == "tested" and any(t.is_floating_point() for t in leaves(straight.output)):
                raise NotAffine("it copies a signal's values without their dependence on the input")
            return straight.output
        for signal in signals:
            self._admit(signal)
            ranked(signal, rank)
        self._note(call.name, straight.kind or (marks[0].kind if marks and rule.kind == "affine" else rule.kind))
        self._add_sources(call, straight)
        name = f"{self._path}:{call.name}"
        self._calls[name] += 1
        name = numbered(name, self._calls[name])
        if name in self.choices.layers if self.choices.layers is not None else rule.activation:
            self.layers.note(name, signals[0], self._path, rule.activation)
        self.layers.ran(signals[0], rule.activation)
        return straight.output

    def _overwritten(self, call: Call, gate: Tensor) -> Tensor:
        """Write a gate over a signal, which is none any more."""
        if call.first._is_view():
            raise NotAffine("it writes a frozen gate to a part of a signal")
        with torch.no_grad():
            call.first.detach().copy_(gate)
        return call.first

    def _frozen(self, call: Call, rule: Rule) -> Straight:
        """Run a call by its rule; what its derivative does not need is not kept."""
        weight = call.argument(1, "weight") if rule.needs == "shape" else None
        whole = not call.first.requires_grad or (isinstance(weight, Tensor) and weight.requires_grad)
        need = "values" if whole else rule.needs
        straight: Straight = self.savings.needing(need, call.first, partial(rule.freeze, call))
        return straight

    def _rank(self, call: Call, rule: Rule) -> int:
        """How much of a gate comes out of a call."""
        moved = rule.rearranges or (rule.shifts and len(call.tensors) == 1)
        passed = gating(call.signals[0]) if moved and len(call.signals) == 1 else 0
        return rule.gating or int(rule.activation) or passed

    def _add_sources(self, call: Call, straight: Straight) -> None:
        """Note the constants that a call adds."""
        if straight.constant is None:
            return
        name = self._name_of_constant(call, self._path)
        for signal, c in zip(leaves(straight.output), leaves(straight.constant), strict=True):
            if signal.requires_grad:
                light = c.numel() < signal.numel() or self.own.holder(c) is not None or bool(c.any())
                own = c.detach() if light else c.new_zeros(()).expand(c.shape)
                self.sources.append(Source(name, len(self.layers), get_gradient_edge(signal), own))

    def _note(self, operation: str, kind: str) -> None:
        self.operations.append(Operation(operation, self._path, kind, line()))

    def _write_to_view(self, call: Call, rule: Rule, marks: Sequence[Mark]) -> Tensor:
        """Write in place to a view: run on a copy first, so that the graph node noted is the operation's own."""
        target, base = call.first, call.first._base
        copy, rest = target.clone(), None
        self._admit(copy)
        ranked(copy, gating(target))
        if base is not None and not base.requires_grad:
            rest = base.clone()
            rest.as_strided(target.shape, target.stride(), target.storage_offset() - base.storage_offset()).zero_()
        written = self._run(call.on(lambda t: copy if t is target else t), rule, marks)
        try:
            target.copy_(written)
        except RuntimeError as error:
            raise NotAffine(f"autograd refuses to write to that view ({str(error).splitlines()[0]})") from error
        self.writes_to_views = True
        self._admit(target)
        ranked(target, gating(written))
        self.layers.copied(written, target)
        if base is not None:
            self._admit(base)
        if base is not None and rest is not None:
            name = f"{self._path}:{call.name}"
            self.sources.append(Source(name, len(self.layers), get_gradient_edge(base), rest))
        return target

    def signal(self, t: Tensor) -> Tensor | None:
        """The tensor if it depends on the input, else None.

        Raises:
            UnsupportedOperation: it came from an operation that could not be seen.
        """
        with torch._C.DisableTorchFunction():
            understood = self._understood(t)
            mark = mark_of(t)
            if mark is not None:
                raise mark.refusal
            return understood if understood.requires_grad else None

    def _understood(self, t: Tensor) -> Tensor:
        """A signal as it is, anything else as a constant; what came from an unseen operation is bent from here on."""
        if not t.requires_grad:
            return t
        mark = mark_of(t)
        if mark is None:
            if t.grad_fn is None:
                return t.detach()
            if t in self._known:
                return t
            if not self._known.reached_from(t):
                return t.detach()
            self._marks, mark = True, Mark("bent", self._unseen(t.grad_fn))
            self._note(t.grad_fn.name(), "bent")
            marked(t, mark)
        return carrying(t.detach(), mark)

    def _look_at(self, value: Any) -> None:
        """Find in which module something came about unseen."""
        for t in leaves(value):
            if t.requires_grad:
                self._understood(t)

    def _before_write(self, call: Call) -> None:
        """Refuse writes to the model; keep the values of recorded layers and of tensors saved for derivatives."""
        if not call.tensors:
            return
        name, storage = self.own.holder(call.first), storage_of(call.first)
        if name is not None:
            raise self._write_to(name, call.name)
        self.layers.about_to_write(storage)
        self.savings.about_to_write(storage)

    def _module_done(self, module: nn.Module, name: str, args: tuple[Any, ...], output: Any) -> Any:
        """Note a module's output if it is wanted; an activation that is a module of its own bears the module's name."""
        self._look_at(output)
        looked_up = isinstance(module, nn.Embedding) and any(storage_of(t) in self._looked_up for t in leaves(args))
        if name in self.choices.inputs or looked_up:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise UnknownLayerError(f"module {name!r} returns {_sort(output)}, which cannot be an explained input")
            output = self.enter(name, output)
        wanted = self.choices.layers
        if wanted is None:
            if not module._modules or next(module.children(), None) is None:
                self.layers.name_after(name, output)
        elif name in wanted and output is not None:
            if not isinstance(output, Tensor) or self._understood(output) is not output or not output.requires_grad:
                raise UnknownLayerError(f"module {name!r} returns {_sort(output)}, not one that depends on the input")
            self.layers.note(name, output, name)
        return output

    def _admit(self, signal: Tensor) -> None:
        """Take a tensor's place in the autograd graph as understood."""
        self._known.admit(signal)
        self.dtypes.add(signal.dtype.to_real())

    @property
    def _path(self) -> str:
        """The module call that is running."""
        return self._stack[-1][1] if self._stack else ""

    def _name_of_constant(self, call: Call, path: str) -> str:
        names = [self.own.name(t) for t in call.tensors if not t.requires_grad]
        found = [name for name in names if name is not None]
        return found[-1] if found and call.name not in ("batch_norm",) else f"{path}:{call.name}"

    def _refusal(self, operation: str, reason: str) -> UnsupportedOperation:
        return refusal(place(operation, self._path, line()), reason)

    def _write_to(self, name: str, operation: str) -> UnsupportedOperation:
        return self._refusal(operation, f"it writes to {name!r} of the model, which must stay as it is")

    def _unseen(self, node: Any) -> UnsupportedOperation:
        return refusal(place(node.name(), self._path, line_of(node)), UNSEEN)


def _sort(value: Any) -> str:
    return "a tensor" if isinstance(value, Tensor) else type(value).__name__
