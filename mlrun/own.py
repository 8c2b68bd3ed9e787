"""Classes of one's own keep to what those of ours above them say: the arguments of each method, and what it returns.

The annotations of our classes are read, so that nothing has to be listed here: what a method of ours says it returns,
a method of one's own that stands in its place must return. What it returns is looked at each time that it is called.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin

from mlrun.errors import UserError, mistake

PACKAGE = "mlrun"
# Methods that are given a network's parts: torch may compile them, so whoever calls them looks at what they return.
COMPILED = "Parts"
HELD = "_held_to_ours"  # marks a method that is looked at already; decorators of one's own leave other marks


@dataclass(frozen=True)
class Named:
    """A class that an annotation names and that is imported for type checkers alone: known by its name."""

    name: str


@dataclass(frozen=True)
class OneOf:
    """What is one of several types."""

    types: tuple[Any, ...]


@dataclass(frozen=True)
class Of:
    """A collection, and what is in it."""

    origin: Any
    inner: tuple[Any, ...]


def hold(found: type, group: str, base: type | None = None) -> None:
    """Make a class of one's own keep to the classes of ours that it inherits from, or to `base`; ours are left alone.

    Raises:
        UserError: an attribute is of another kind, or a method takes other arguments.
    """
    for one in found.__mro__:
        if not ours(one) and one.__module__ not in ("builtins", "abc", "typing"):
            above = [c for c in (*found.__mro__[found.__mro__.index(one) :], base) if c is not None and ours(c)]
            for name in [name for name in vars(one) if not name.startswith("_")]:
                _hold(one, name, above, group)


def beside(found: type) -> list[type]:
    """Return the other classes of its module that inherit from ours: what a class of one's own makes as it works.

    What it makes is held when it is made: of a listener, once all data is prepared. So these are looked at first.
    """
    there = [one for one in vars(sys.modules[found.__module__]).values() if inspect.isclass(one) and one is not found]
    return [one for one in there if not ours(one) and any(map(ours, one.__mro__))]


def ours(found: type) -> bool:
    """Return whether a class is one of this package."""
    return found.__module__.split(".")[0] == PACKAGE


def _hold(own: type, name: str, above: Sequence[type], group: str) -> None:
    """Hold one member of a class to the first class of ours that has it."""
    theirs = next((c for c in above if name in vars(c) or name in vars(c).get("__annotations__", {})), None)
    if theirs is None:
        return
    member, ours = vars(own)[name], vars(theirs).get(name)
    if inspect.isfunction(member) and inspect.isfunction(ours):
        if getattr(ours, "__final__", False):  # what whoever calls it never asks of a class below
            remedy = f"nothing calls it there: remove it, or inherit from what {theirs.__name__} inherits from"
            raise UserError(mistake(group, f"{own.__name__}.{name}", f"that of {theirs.__name__}", remedy))
        _same_arguments(own, member, ours, group)
        told = ours.__annotations__
        # What ought to return nothing may return anything: nobody looks at it.
        if not hasattr(member, HELD) and COMPILED not in told.values() and told.get("return") != "None":
            setattr(own, name, _watched(own, member, ours, group))
    elif isinstance(member, property) and isinstance(ours, property):
        getter, asked = member.fget, ours.fget
        if inspect.isfunction(getter) and inspect.isfunction(asked) and not hasattr(getter, HELD):
            setattr(own, name, property(_watched(own, getter, asked, group)))
    else:
        _same_kind(own, name, above, group)


def _same_kind(own: type, name: str, above: Sequence[type], group: str) -> None:
    """Raise UserError if an attribute of a class is not what the first class of ours that says so takes it for."""
    declared = ((c, vars(c).get("__annotations__", {}).get(name)) for c in above)
    theirs, text = next(((c, said) for c, said in declared if isinstance(said, str)), (None, ""))
    member = vars(own)[name]
    if theirs is None or "ClassVar" not in text:
        return
    if not fits(member, _resolved(_inner(text), vars(sys.modules[theirs.__module__]))):
        raise UserError(mistake(group, f"{own.__name__}.{name}={member!r}"[:80], _inner(text), "correct it"))


def _same_arguments(own: type, member: Callable[..., Any], ours: Callable[..., Any], group: str) -> None:
    """Raise UserError if a method cannot be called as ours is."""
    given, asked = inspect.signature(member), inspect.signature(ours)
    names = list(asked.parameters)
    try:
        given.bind(*names)
    except TypeError:
        shown = f"{own.__name__}.{member.__name__}({', '.join(given.parameters)})"
        raise UserError(mistake(group, shown, f"({', '.join(names)})", "correct its arguments")) from None


def _watched(own: type, member: Callable[..., Any], ours: Callable[..., Any], group: str) -> Callable[..., Any]:
    """Return the method, which raises UserError where it returns anything but what ours says."""
    text = str(ours.__annotations__.get("return", "Any"))
    hint = _resolved(text, ours.__globals__)
    if get_origin(hint) is not None:  # a name of ours, such as Results, that stands for more
        text = re.sub(r"\b(?:\w+\.)+", "", str(hint))

    @functools.wraps(member)
    def watched(*args: Any, **kwargs: Any) -> Any:
        return checked(member(*args, **kwargs), hint, text, f"{own.__name__}.{member.__name__}", group)

    setattr(watched, HELD, True)
    return watched


def checked(told: Any, hint: Any, text: str, where: str, group: str) -> Any:
    """Return what a method told, where that fits the hint, whose `text` people read; `where` names the method.

    Raises:
        UserError: it does not; of an iterator, as soon as it yields what does not.
    """
    if not fits(told, hint):
        raise UserError(mistake(group, f"{kind(told)} from {where}", text, "correct what it returns"))
    if inspect.isclass(hint) and ours(hint):
        hold(type(told), group, hint if _protocol(hint) else None)
    origin, inner = _parts(hint)
    if origin is Iterator and inner:
        return (checked(one, inner[0], text, where, group) for one in told)
    return told


def kind(told: Any) -> str:
    """Return what people call what was returned: its class, and of a collection the first kinds in it."""
    name = "None" if told is None else type(told).__name__
    if isinstance(told, Mapping) and told:
        key, value = next(iter(told.items()))
        return f"{name} of {type(key).__name__} to {kind(value)}"
    if isinstance(told, list | tuple | set) and told:
        return f"{name} of {', '.join(dict.fromkeys(map(kind, list(told)[:8])))}"
    return f"an empty {name}" if isinstance(told, list | tuple | set | Mapping) else name


def _resolved(text: str, known: Mapping[str, Any]) -> Any:
    """Return the type that an annotation of a module of ours stands for."""
    return _type(ast.parse(text, mode="eval").body, known)


def _type(node: ast.expr, known: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return known[name] if name in known else getattr(builtins, name, None) or Named(name)
        case ast.Attribute(_, name):
            return Named(name)
        case ast.BinOp(left, ast.BitOr(), right):
            return OneOf((_type(left, known), _type(right, known)))
        case ast.Subscript(origin, inner):
            found = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return Of(_type(origin, known), tuple(_type(one, known) for one in found))
    return Any


def _inner(text: str) -> str:
    return text.removeprefix("ClassVar[").removesuffix("]")


def fits(told: Any, hint: Any) -> bool:
    """Return whether a value is what a type says, as deep as a collection of it can be looked into."""
    if isinstance(hint, Named):
        return any(c.__name__ == hint.name for c in type(told).__mro__)
    origin, inner = _parts(hint)
    if isinstance(hint, OneOf) or origin in (Union, UnionType):
        return any(fits(told, one) for one in (hint.types if isinstance(hint, OneOf) else inner))
    if origin is Literal:
        return True  # whoever asks says which values there are
    if origin is not None:
        return _whole(told, origin) and _inside(told, origin, inner)
    return _whole(told, NoneType if hint is None else hint)


def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a collection and what is in it; (None, ()) for any other type."""
    return (hint.origin, hint.inner) if isinstance(hint, Of) else (get_origin(hint), get_args(hint))


def _whole(told: Any, kind: Any) -> bool:
    """Return whether a value is of a class, whatever is in it."""
    if kind in (Any, Self, ClassVar) or not inspect.isclass(kind):
        return True
    if kind in (int, float):  # numbers of arrays and tensors too
        return hasattr(type(told), f"__{kind.__name__}__") and not isinstance(told, str)
    if _protocol(kind):
        members = {name for c in kind.__mro__ if _protocol(c) for name, one in vars(c).items() if callable(one)}
        return all(hasattr(told, name) for name in members if not hasattr(object, name))
    if isinstance(told, str) and kind is not object:
        return kind is str  # a string is a sequence, but never the one that is meant
    return isinstance(told, kind)


def _protocol(kind: Any) -> bool:
    return inspect.isclass(kind) and getattr(kind, "_is_protocol", False) and ours(kind)


def _inside(told: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    """Return whether what is in a collection is what its type says; an iterator is looked at as it goes."""
    if origin is tuple and inner[-1:] != (...,):
        return len(told) == len(inner) and all(map(fits, told, inner))
    if issubclass(origin, Mapping):
        return all(fits(key, inner[0]) and fits(value, inner[1]) for key, value in told.items())
    if issubclass(origin, Sequence | set | frozenset):
        return all(fits(one, inner[0]) for one in told)
    return True
