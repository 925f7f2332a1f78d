"""Operators that write to encoded tensors: they run on a dense copy, which is encoded once they succeeded.

What an operator writes to is read from its schema, so that one mechanism serves them all: in-place operators,
``out=``, lists of tensors, random numbers, operators of other libraries. What cannot be done so is an error;
nothing that is written gets lost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from pyendor.errors import UsageError
from pyendor.torch_memory import Backed, Memory, encode, replayed

# In-place operators that replace elements and read none of those that they replace. A parameter is given its
# initial values, loaded, and masked by these; what else writes to one that requires gradients trains it.
_REPLACING = {
    *("copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_", "fill_diagonal_"),
    *("normal_", "uniform_", "random_", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_"),
    *("masked_fill_", "masked_scatter_", "index_fill_", "index_copy_", "index_put_", "_index_put_impl_"),
    *("scatter_", "put_"),
}
# Those that replace all of them, whatever they are.
_FILLING = {
    *("copy_", "fill_", "zero_"),
    *("normal_", "uniform_", "random_", "cauchy_", "exponential_", "geometric_", "log_normal_"),
}


def _name(func: Any) -> str:
    return str(func._schema.name).partition("::")[2]


@functools.cache
def written(func: Any) -> dict[str, int | None]:
    """The arguments that an operator writes to: by name, their places; None for ``out=`` and the like."""
    # The operators of torch.distributed do not say what they write to.
    everything = func.namespace == "c10d"
    found: dict[str, int | None] = {}
    for place, argument in enumerate(func._schema.arguments):
        about = argument.alias_info
        if (about is not None and about.is_write) or (everything and "Tensor" in str(argument.type)):
            found[argument.name] = None if argument.kwarg_only else place
    return found


def write(func: Any, places: dict[str, int | None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator gives that writes to some of its arguments."""
    targets: dict[int, Backed] = {}
    for name, place in places.items():
        value = kwargs.get(name) if place is None or place >= len(args) else args[place]
        found = [one for one in tree_leaves(value) if isinstance(one, Backed)]
        targets.update({id(one): one for one in found})
        for one in found:
            check(one, func.name(), replaces=place is None or _name(func) in _REPLACING)
    if targets and "c10d" in func.namespace:
        raise UsageError(
            f"{func.name()} cannot work on an encoded tensor: communicate its decode(), and copy_() that back"
        )

    if _name(func) == "copy_" and (done := _copied(args[0], args[1])) is not None:
        return done

    def call(stand_in: Callable[[Backed], Tensor]) -> Any:
        dense = tree_map_only(Backed, stand_in, (args, kwargs))
        return func(*dense[0], **dense[1])

    mentioned = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Backed)]
    blank = len(mentioned) == 1 and _name(func) in _FILLING
    return rewrite(list(targets.values()), call, func.name(), blank=blank)


def _copied(into: Tensor, source: object) -> Tensor | None:
    """``into.copy_(source)`` where both are encoded alike, as when a state is loaded; None for others."""
    if not isinstance(into, Backed) or not isinstance(source, Backed) or into.steps or source.steps:
        return None
    if (
        (into.shape, into.dtype) != (source.shape, source.dtype)
        or into.memory is None
        or source.memory is None
    ):
        return None
    parts = {role: part.to(into.device, copy=True) for role, part in source.memory.parts.items()}
    into.memory.replace(parts, source.memory.meta)
    return into


def check(target: Backed, name: str, *, replaces: bool = False) -> None:
    """Raise an error if a tensor cannot be written to.

    Args:
        target: the tensor.
        name: what would write to it, for messages.
        replaces: that only replaces elements.

    Raises:
        UsageError: it cannot, for the reason that it gives.
    """
    if target.memory is None:
        raise UsageError(
            f"{name} cannot write to a view of an encoded tensor that a compiled function has made: make the "
            "view outside of it, or write to a clone()"
        )
    target.memory.check_writable()
    if target.requires_grad and target.is_leaf and not replaces:
        raise UsageError(
            f"{name} cannot update an encoded tensor that requires gradients, as every step would encode all "
            "of it: train a decode()d copy, or an adapter such as LoRA; to change it once, call "
            "requires_grad_(False) first"
        )


def rewrite(
    targets: list[Backed],
    call: Callable[[Callable[[Backed], Tensor]], Any],
    name: str,
    *,
    blank: bool = False,
) -> Any:
    """Run what writes to tensors on dense ones, and encode these.

    Args:
        targets: what is written to; their memory can be.
        call: does it, given what gives the dense tensor for an encoded one.
        name: what it is called, for messages.
        blank: it reads no elements of the targets, all of which it replaces.

    Returns:
        The same; where that is the dense tensor of a target, the target.

    Raises:
        UsageError: what was done is not a change of elements. All tensors are as they were.
    """
    memories = {id(one.memory): one.memory for one in targets if one.memory is not None}
    bases: dict[int, Tensor] = {}
    stand_ins: dict[int, Tensor] = {}

    def stand_in(one: Backed) -> Tensor:
        if id(one.memory) not in memories:
            return one.decode()
        if id(one) not in stand_ins:
            stand_ins[id(one)] = _view(
                _base(memories[id(one.memory)], bases, blank and not one.steps), one, name
            )
        return stand_ins[id(one)]

    placed = {id(one): _place(stand_in(one)) for one in targets}
    moved = UsageError(
        f"{name} would change the shape or the memory of an encoded tensor or of a view of one: decode() it "
        "first; to replace all of it, assign to .data"
    )
    try:
        result = call(stand_in)
    except RuntimeError as error:
        if "not resizable" in str(error):  # what was decoded is in memory of NumPy
            raise moved from error
        raise
    if any(_place(stand_ins[id(one)]) != placed[id(one)] for one in targets):
        raise moved
    # First all are encoded, then all are replaced: an error leaves them as they were.
    new = {
        key: encode(dense) if dense.device.type != "meta" else memories[key].state
        for key, dense in bases.items()
    }
    for key, (parts, meta) in new.items():
        memories[key].replace(parts, meta, bases[key])
    originals = {id(stand_ins[id(one)]): one for one in targets}
    return tree_map_only(Tensor, lambda one: originals.get(id(one), one), result)


def _base(memory: Memory, bases: dict[int, Tensor], blank: bool) -> Tensor:
    """The dense tensor of a memory, the same one for all tensors that share it."""
    if id(memory) not in bases:
        bases[id(memory)] = memory.blank() if blank else memory.decode()
    return bases[id(memory)]


def _view(dense: Tensor, one: Backed, name: str) -> Tensor:
    try:
        return replayed(dense, one.steps)
    except RuntimeError as error:
        raise UsageError(f"{name} cannot write to this view of an encoded tensor: {error}") from error


def _place(dense: Tensor) -> tuple[object, ...]:
    """What a change of elements leaves as it is."""
    about = (dense.shape, dense.dtype, dense.device, dense.stride(), dense.storage_offset())
    return (*about, dense.untyped_storage()._cdata, dense.untyped_storage().nbytes())
