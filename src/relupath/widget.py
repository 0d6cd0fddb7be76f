"""The view in a notebook (Jupyter, VS Code, Colab, marimo): it asks, the kernel answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from importlib.resources import files
from operator import index
from typing import Any, SupportsIndex

from PIL import Image

from . import plans
from ._asked import is_long
from ._frozen import Frozen
from ._html import block, said, table
from ._patience import while_waited_for
from ._targets import Target
from .errors import InputError, MissingExtraError, RelupathError, UsageError
from .explorer import Explorer, Names

Base: Any = object
MISSING: ImportError | None = None
try:
    from anywidget import AnyWidget
    from traitlets import Dict
except ImportError as error:
    MISSING = error
else:
    Base = AnyWidget

__all__ = ["View", "explore"]

Asked = int | SupportsIndex | str | Target | None
"""A class by index or name, or what ``logit`` and ``contrast`` give."""


def _web(name: str) -> str:
    """A file of the page."""
    return files(__package__).joinpath("web", name).read_text(encoding="utf-8")


class View(Base):  # type: ignore[misc]  # anywidget may be missing
    """The view of one recorded network at one input; see ``explore``.

    A message ``{id, question}`` is answered by ``{id, answer}``, or ``{id, error}`` with one sentence; after ``{forget:
    id}`` its computation ends soon. Where the kernel has an event loop, answers are computed one after the other in a
    thread of their own, those that may take long in another one, so that it can do other work.

    Attributes:
        state: what the view shows first, with the fields of a question.
    """

    _esm = _web("relupath.js")
    _css = _web("relupath.css")
    if MISSING is None:
        state = Dict().tag(sync=True)

    def __init__(self, explorer: Explorer, state: dict[str, Any], opened: dict[str, Any]) -> None:
        """Keep what answers, what is shown first, and what was seen."""
        self.explorer, self.opened = explorer, opened
        self._quick, self._long = (ThreadPoolExecutor(1, thread_name_prefix="relupath") for _ in range(2))
        self._left: dict[str, threading.Event] = {}
        super().__init__(state=state)
        self.on_msg(self._asked)

    def close(self) -> None:
        """Take the view off the page, and let the recording go."""
        for left in [*self._left.values()]:
            left.set()
        for worker in (self._quick, self._long):
            worker.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and for where it has lost its kernel the classes as a table."""
        bundle = super()._repr_mimebundle_(**kwargs)
        best = [(s["name"], s["logit"], round(100 * s["probability"], 1)) for s in self.opened["best"]]
        lost = said("The view needs a running kernel: run the cell again.")
        title = f"{self.opened['picture']['name']}: why {self.opened['target']['name']}?"
        if bundle is not None:
            bundle[0]["text/html"] = block(title, table(("best classes", "logit", "probability in %"), best), lost)
        return bundle

    def _asked(self, _: object, message: object, __: object) -> None:
        """Answer a message, at once or, where there is an event loop, when it is computed."""
        if isinstance(message, dict) and str(message.get("forget")) in self._left:
            self._left[str(message["forget"])].set()
        if not isinstance(message, dict) or "id" not in message:
            return
        self._left[str(message["id"])] = threading.Event()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.send(self._reply(message))
            return
        context = copy_context()

        def done(reply: Future[dict[str, Any]]) -> None:
            loop.call_soon_threadsafe(self.send, reply.result(), context=context)

        worker = self._long if is_long(message.get("question")) else self._quick
        worker.submit(self._reply, message).add_done_callback(done)

    def _reply(self, message: dict[str, Any]) -> dict[str, Any]:
        left = self._left.get(str(message["id"]))
        try:
            with while_waited_for(left.is_set) if left else nullcontext():
                return {"id": message["id"], "answer": self.explorer.answer(message.get("question"))}
        except RelupathError as error:
            return {"id": message["id"], "error": str(error)}
        except Exception as error:  # whatever it is, the view must not wait for ever
            said = str(error).partition("\n")[0]
            return {"id": message["id"], "error": f"{type(error).__name__}: {said}"}
        finally:
            self._left.pop(str(message["id"]), None)


def explore(
    frozen: Frozen,
    target: Asked = None,
    *,
    against: int | SupportsIndex | str | None = None,
    partition: str = "channels",
    classes: Sequence[str] = (),
    image: Image.Image | None = None,
    name: str = "input",
) -> View:
    """Show in a notebook how a decision is made up: a tree of paths with maps, which opens where one clicks.

    Args:
        frozen: a network recorded at one input, whose output is one number a class.
        target: the class to explain by index or name, ``logit(c)`` or ``contrast(c, d)``; None means the predicted one.
        against: the class to compare with; None means the best other one.
        partition: what counts as one unit: ``neurons``, ``channels``, ``locations``, ``axis:N`` or ``heads:N``.
        classes: the names of the classes.
        image: the picture, to lie below the maps; None means the input where it looks like a picture.
        name: what the input is called.

    Raises:
        MissingExtraError: anywidget is not installed.
        InputError: there are several samples, or the image is no PIL image.
        TargetError: there is no such class.
        UsageError: there is no such partition, or the target is no class.
        ModelError: the output does not hold one number a class.
    """
    if MISSING is not None:
        raise MissingExtraError(
            f"anywidget is needed for this: pip install 'relupath[notebook]' ({MISSING})"
        ) from MISSING
    if image is not None and not isinstance(image, Image.Image):
        raise InputError(f"give the image as a PIL image, such as PIL.Image.open(file); got {type(image).__name__}")
    plans.partition(partition)
    on = "target"
    if isinstance(target, Target):
        if target.minus is not None:
            if against is not None:
                raise UsageError(f"{target.label(0)} names the class to compare with: leave out against={against!r}")
            on, against = "contrast", _class(target.minus)
        target = _class(target.plus)
    explorer = Explorer(Names(tuple(classes)))
    picture = explorer.add_recorded(frozen, name, image)
    asked = {"ask": "open", "picture": picture, "target": _class(target), "against": _class(against)}
    opened = explorer.answer(asked)
    found = {role: opened[role]["index"] for role in ("target", "against")}
    return View(explorer, {"picture": picture, **found, "partition": partition, "on": on}, opened)


def _class(asked: Any) -> int | str | None:
    """A class as a question holds it.

    Raises:
        UsageError: it is none.
    """
    if asked is None or isinstance(asked, str):
        return asked
    try:
        return index(asked)
    except TypeError:
        raise UsageError(f"give one class by its index or its name; got {asked!r}") from None
