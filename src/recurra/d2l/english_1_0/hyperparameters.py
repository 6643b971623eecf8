"""Methods that are added to a class later, and arguments that become attributes (section 3.2)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def add_to_class(Class: type) -> Callable[[Function], Function]:  # noqa: N803
    """Return a decorator that makes a function a method of an existing class.

    Objects that exist already have the method too. Unlike in the book, the function keeps its name
    outside the class; there, the name is None afterwards.

    Examples:
        >>> from recurra import d2l
        >>> class Clock:
        ...     time = 7
        >>> clock = Clock()
        >>> @d2l.add_to_class(Clock)
        ... def advance(self, hours):
        ...     self.time += hours
        >>> clock.advance(2)
        >>> clock.time
        9
    """

    def add(function: Function) -> Function:
        setattr(Class, function.__name__, function)
        return function

    return add


class HyperParameters:
    """Base class whose method `save_hyperparameters` stores the arguments of `__init__`.

    Attributes:
        hparams: dictionary of the arguments that the last call stored.

    Examples:
        >>> from recurra import d2l
        >>> class Noise(d2l.HyperParameters):
        ...     def __init__(self, sigma, seed=0):
        ...         self.save_hyperparameters(ignore=["seed"])
        >>> Noise(0.1).sigma
        0.1
        >>> Noise(0.1).hparams
        {'sigma': 0.1}
    """

    hparams: dict[str, Any]

    def save_hyperparameters(self, ignore: Collection[str] = ()) -> None:
        """Store the local variables of the calling function as attributes, and in `hparams`.

        Args:
            ignore: names that are not stored. `self` and names with a leading underscore are never
                stored.
        """
        frame = inspect.currentframe()
        assert frame is not None
        caller = frame.f_back
        assert caller is not None
        self.hparams = {
            name: value
            for name, value in caller.f_locals.items()
            if name != "self" and name not in ignore and not name.startswith("_")
        }
        for name, value in self.hparams.items():
            setattr(self, name, value)
