"""The CUDA decoder: device addresses and a stream in, dense elements in device memory out. No torch here.

Everything is put onto the caller's stream: nothing is allocated and nothing waits. A tensor's parts (spec 8)
and its output are :class:`Memory`, addresses as ``data_ptr()`` of torch or ``__cuda_array_interface__`` give
them, and how many bytes there are (:mod:`pyendor.dlpack` takes them from arrays); who hands them over keeps
the memory until the stream has got there. ``meta`` of a job is that of a
:class:`~pyendor.encoded.EncodedTensor`, which ``get_encoded`` of an open file gives.

    parts = packed(meta, Memory(base, nbytes))
    job = Job(meta, parts, out=Memory(dense.data_ptr(), dense.nbytes), status=word.data_ptr())
    launch = Launch([job, ...], device=0)  # the matrices of a layer: one kernel
    launch(stream)                         # as often as wanted, in a CUDA graph too
    ...                                    # later, when `word` has been copied to the host:
    check(int(word))

``device`` is the number of the device that the memory and the stream are on. The work is done in its primary
context, that of the CUDA runtime and of PyTorch, from any thread; the thread's current context is left as it
was. Without a number it is done in the current context, or, in a thread that has none, in the primary context
of the device that the memory lies on.

Whatever the bytes of the parts are, the kernels stay inside the buffers. The rules are checked on the way
(B-11): what they find broken they put into a *status word*, 8 bytes of device memory that were 0 before.

``PYENDOR_CUDA_DRIVER`` names another library than the system's ``libcuda``, such as the one that tests run
the kernels on a CPU with.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pyendor import capi, dtypes, layout
from pyendor.errors import BackendUnavailableError, FormatError, quote
from pyendor.layout import BLOCK, blocks
from pyendor.metadata import TensorMeta

__all__ = [
    "Fault",
    "Job",
    "Launch",
    "Memory",
    "available",
    "check",
    "decode",
    "fault",
    "load",
    "packed",
    "packed_nbytes",
    "unavailable",
]

try:
    from pyendor import _native
except ImportError:  # no compiler was at hand when the package was installed
    _native = None  # type: ignore[assignment]

DRIVER = "PYENDOR_CUDA_DRIVER"

_NOWHERE = (1 << 64) - 1
_REFUSED = "the CUDA decoder refuses its arguments: a size, a range or an address makes no sense"


class Memory(NamedTuple):
    """Memory that a kernel may use.

    Attributes:
        address: of its first byte, in device memory, or in host memory that the device can use.
        nbytes: how many bytes there are.
    """

    address: int
    nbytes: int


class Fault(NamedTuple):
    """What a status word says.

    Attributes:
        rule: the ID of the rule that is broken; of several, that which the other codecs name too.
        block: the block that breaks it; None where it is not one, but what lies before or behind all blocks.
    """

    rule: str
    block: int | None


@dataclass(frozen=True, slots=True)
class Job:
    """A range of blocks of one tensor to be decoded, all of them if nothing else is said.

    Parts and output need no alignment; multiples of 16 are fast.

    Attributes:
        meta: entry of the tensor, of a supported encoding.
        parts: the memory of each part by role, just as many bytes as B-2 says.
        out: where the elements go, just ``(min(stop * 4096, numel) - first * 4096) * itemsize`` bytes, which
            overlap no other memory of a launch; None to check only.
        status: the address of a status word, a multiple of 8; None for parts that were checked before. Jobs
            may share one: of their faults that of the lowest block remains.
        first: the block of 4096 elements that the range begins with.
        stop: the block behind its last one; None stands for the number of blocks.
    """

    meta: TensorMeta
    parts: Mapping[str, Memory]
    out: Memory | None
    status: int | None = None
    first: int = 0
    stop: int | None = None


class Launch:
    """Jobs, ready to be launched: one kernel for every 32 that have elements of one size.

    It is called, as ``launch(stream)``, as often as wanted, also while the stream is captured into a CUDA
    graph (after :func:`load`).

    Args:
        jobs: what is to be decoded; they are copied, the memory that they name is not.
        device: the number of the device that the memory is on; None for the current context.

    Raises:
        BackendUnavailableError: there is no CUDA here (:func:`unavailable` says why).
        ValueError: a part is missing, memory has another size than is needed, overlaps other memory or has
            no valid address, or the range of blocks is invalid.
    """

    def __init__(self, jobs: Sequence[Job], device: int | None = None) -> None:
        self._cuda = _require()
        self._device = _number(self._cuda, device)
        self._given = [_Given.of(job) for job in jobs]
        _require_apart(self._given)
        self._jobs = _native.ffi.new("endor_cuda_job[]", [given.members() for given in self._given])

    def __call__(self, stream: int = 0, outs: Sequence[Memory] | None = None) -> None:
        """Puts it onto a stream.

        Args:
            stream: a ``CUstream`` or ``cudaStream_t`` as a number, such as that of
                ``torch.cuda.current_stream().cuda_stream``; 0 is the default stream.
            outs: other outputs than those of the jobs, in their order, from now on. Not while another thread
                launches this.

        Raises:
            ValueError: an output has another size than is needed, or overlaps other memory. Nothing was
                launched or changed.
            RuntimeError: the driver refused.
            IndexError: there are more outputs than jobs. Nothing was launched or changed.
        """
        if outs:
            self._replace(outs)
        lib, ffi = _native.lib, _native.ffi
        result = ffi.new("int *")
        where = ffi.cast("void *", _address(stream, "the stream"))
        status = lib.endor_cuda_decode(self._cuda, self._device, self._jobs, len(self._given), where, result)
        _raise(self._cuda, status, result[0])

    def _replace(self, outs: Sequence[Memory]) -> None:
        if len(outs) > len(self._given):
            raise IndexError(f"{len(outs)} outputs for {len(self._given)} jobs")
        changed = [given.with_out(out) for given, out in zip(self._given, outs, strict=False)]
        given = changed + self._given[len(changed) :]
        _require_apart(given)
        self._given = given
        for i, one in enumerate(changed):
            self._jobs[i].out, self._jobs[i].out_size = one.out()


def decode(jobs: Sequence[Job], stream: int = 0, device: int | None = None) -> None:
    """Launches jobs once, as :class:`Launch` does.

    Args:
        jobs: what is to be decoded.
        stream: a ``CUstream`` or ``cudaStream_t`` as a number; 0 is the default stream.
        device: the number of the device that the memory and the stream are on; None for the current context.

    Raises:
        BackendUnavailableError: there is no CUDA here.
        ValueError: a job makes no sense. Nothing was launched.
        RuntimeError: the driver refused.
    """
    Launch(jobs, device)(stream)


def packed(meta: TensorMeta, memory: Memory) -> dict[str, Memory]:
    """The parts of a tensor that lie one behind the other in memory, in the order of B-2.

    So they lie in a canonical file (W-3), and in device memory that they were copied to in one piece. Where
    the memory begins at a multiple of 64, all of them do.

    Args:
        meta: entry of the tensor, of a supported encoding.
        memory: where they lie, from its beginning on.

    Returns:
        Their memory by role, as :class:`Job` takes it.

    Raises:
        ValueError: there are fewer bytes than the parts have.
    """
    needed = packed_nbytes(meta)
    if memory.nbytes < needed:
        raise ValueError(f"the parts have {needed} bytes, there is memory of {memory.nbytes} bytes")
    found, at = {}, memory.address
    for spec in layout.part_specs(meta):
        found[spec.role] = Memory(at, spec.nbytes)
        at += spec.nbytes
    return found


def packed_nbytes(meta: TensorMeta) -> int:
    """The bytes of all parts of a tensor (B-2).

    Args:
        meta: entry of the tensor, of a supported encoding.

    Returns:
        Their sum, a multiple of 64.
    """
    return sum(spec.nbytes for spec in layout.part_specs(meta))


def fault(word: int) -> Fault | None:
    """What a status word says.

    Args:
        word: the word, as a number of 64 bits with or without a sign, when the stream has got there.

    Returns:
        What is wrong; None if nothing is.

    Raises:
        RuntimeError: it is none. Something else has written there.
    """
    block = _native.ffi.new("uint64_t *")
    status = _native.lib.endor_cuda_fault(word & _NOWHERE, block)
    if status == _native.lib.ENDOR_OK:
        return None
    if status == _native.lib.ENDOR_ARGUMENT:
        raise RuntimeError(f"{word & _NOWHERE:#x} is no status word of the CUDA decoder")
    rule = next(rule for rule in capi.FAULTS if getattr(_native.lib, capi.status_name(rule)) == status)
    return Fault(rule, None if block[0] == _NOWHERE else int(block[0]))


def check(word: int, *, tensor: str | None = None, path: str | None = None) -> None:
    """Raises what a status word says.

    Args:
        word: as for :func:`fault`.
        tensor: name of the tensor, for the error.
        path: its file, for the error.

    Raises:
        FormatError: a rule is broken. The codecs of the CPU know the offset too.
        RuntimeError: as for :func:`fault`.
    """
    found = fault(word)
    if found is None:
        return
    where = "" if found.block is None else f" (block {found.block})"
    raise FormatError(found.rule, capi.FAULTS[found.rule][1] + where, tensor=tensor, path=path)


def available(device: int | None = None) -> bool:
    """True if the kernels of this build run on a device.

    Args:
        device: its number; None for that of the current context, or, in a thread that has none, for any.

    Returns:
        Whether they do.
    """
    return unavailable(device) is None


def unavailable(device: int | None = None) -> str | None:
    """Why the kernels of this build do not run on a device; None if they do.

    The first time that this is asked of a device they are loaded there, which is the only way to know.

    Args:
        device: its number; None for that of the current context, or, in a thread that has none, for any.

    Returns:
        The reason, as text for a message.
    """
    if _native is None:
        return "pyendor was installed without its native codec, for which a C compiler is needed"
    driver = os.environ.get(DRIVER)
    cuda = _opened(driver)
    if cuda is None:
        if not kernels_nbytes():
            return "pyendor was built without nvcc, and has no CUDA kernels"
        return "there is no CUDA driver here, or no device"
    lib = _native.lib
    if device is None and (current := lib.endor_cuda_current(cuda)) >= 0:
        device = current
    if device is not None:
        return _unloadable(driver, device)
    reasons = (_unloadable(driver, number) for number in range(lib.endor_cuda_devices(cuda)))
    found = []
    for reason in reasons:
        if reason is None:
            return None
        found.append(reason)
    return "; ".join(found)


@functools.cache
def _unloadable(driver: str | None, device: int) -> str | None:
    """Why the kernels cannot be loaded on a device; None if they are."""
    cuda = _opened(driver)
    if not 0 <= device < _native.lib.endor_cuda_devices(cuda):
        return f"there is no CUDA device {device}"
    result = _native.ffi.new("int *")
    try:
        _raise(cuda, _native.lib.endor_cuda_load(cuda, device, result), result[0])
    except RuntimeError as error:
        return f"the kernels of this build do not run on CUDA device {device}: {error}"
    return None


def kernels_nbytes() -> int:
    """Bytes of the compiled kernels in this build; 0 if it was built without nvcc."""
    return int(_native.lib.endor_cuda_kernels_size()) if _native is not None else 0


def load(device: int | None = None) -> None:
    """Loads the kernels on a device, before the first launch there is captured into a graph.

    Otherwise the first launch does it, which may wait for the device.

    Args:
        device: its number; None for the current context.

    Raises:
        BackendUnavailableError: there is no CUDA here.
        ValueError: there is no such device.
        RuntimeError: the driver refused, as where the kernels of this build do not run on the device.
    """
    cuda, result = _require(), _native.ffi.new("int *")
    status = _native.lib.endor_cuda_load(cuda, _number(cuda, device), result)
    _raise(cuda, status, result[0])


def _raise(cuda: Any, status: int, result: int) -> None:
    """The error that a status stands for, if it is one."""
    if status == _native.lib.ENDOR_DRIVER:
        text = _native.ffi.string(_native.lib.endor_cuda_message(cuda, result)).decode()
        raise RuntimeError(f"CUDA: {text} (error {result})")
    if status != _native.lib.ENDOR_OK:
        raise ValueError(_REFUSED)


@functools.cache
def _opened(driver: str | None) -> Any:
    """The decoder with this driver; None if there is none."""
    opened = _native.ffi.new("endor_cuda **")
    path = _native.ffi.NULL if driver is None else os.fsencode(driver)
    return opened[0] if _native.lib.endor_cuda_open(path, opened) == _native.lib.ENDOR_OK else None


def _require() -> Any:
    """The decoder; whether it has kernels for a device the driver says when they are launched there."""
    driver = os.environ.get(DRIVER)
    cuda = _opened(driver) if _native is not None else None
    if cuda is None:
        raise BackendUnavailableError(f"no CUDA decoder: {unavailable()}")
    return cuda


def _number(cuda: Any, device: int | None) -> int:
    """The number of a device as C takes it."""
    if device is None:
        return int(_native.lib.ENDOR_CUDA_CURRENT)
    there = _native.lib.endor_cuda_devices(cuda)
    if not 0 <= device < there:
        raise ValueError(f"there is no CUDA device {device}; there are {there}, the first is 0")
    return int(device)


@dataclass(frozen=True, slots=True)
class _Given:
    """A job, checked: what it needs and what it has."""

    job: Job
    memory: dict[str, Memory]
    stop: int
    size: int

    @classmethod
    def of(cls, job: Job) -> _Given:
        meta = job.meta
        there = blocks(meta.numel)
        stop = there if job.stop is None else job.stop
        if not 0 <= job.first <= stop <= there:
            raise ValueError(f"there are no blocks {job.first} to {stop}: the tensor has {there}")
        specs = {spec.role: spec.nbytes for spec in layout.part_specs(meta)}
        if job.parts.keys() != specs.keys():
            named = [", ".join(sorted(roles)) or "none" for roles in (job.parts, specs)]
            raise ValueError(f"the parts given are {named[0]}; those of this encoding are {named[1]}")
        memory = {
            role: _checked(job.parts[role], size, f"part {quote(role)}") for role, size in specs.items()
        }
        elements = max(0, min(stop * BLOCK, meta.numel) - job.first * BLOCK)
        if job.status is not None and _address(job.status, "the status word") % 8:
            raise ValueError(f"the status word is at {job.status:#x}, which is no multiple of 8")
        given = cls(job, memory, stop, elements * dtypes.BY_NAME[meta.dtype].itemsize)
        return given if job.out is None else given.with_out(job.out)

    def with_out(self, out: Memory) -> _Given:
        """The same with another output."""
        return replace(self, job=replace(self.job, out=_checked(out, self.size, "the output")))

    def out(self) -> tuple[Any, int]:
        """Where the elements go, and how many bytes there are."""
        address, nbytes = self.job.out or (0, 0)
        return _native.ffi.cast("void *", address), nbytes if address else 0

    def members(self) -> tuple[Any, ...]:
        """The members of an ``endor_cuda_job``."""
        parts = [self.memory.get(role, Memory(0, 0)) for role in capi.ROLES]
        pairs = [(_native.ffi.cast("void *", address), nbytes) for address, nbytes in parts]
        word = _native.ffi.cast("uint64_t *", self.job.status or 0)
        parts_member = tuple(itertools.chain.from_iterable(pairs))
        return capi.tensor(self.job.meta), parts_member, self.job.first, self.stop, *self.out(), word


def _checked(memory: Memory, needed: int, what: str) -> Memory:
    """Memory of just that size, at an address that there is."""
    address, nbytes = memory
    if nbytes != needed:
        raise ValueError(f"{what} has {nbytes} bytes, expected {needed}")
    if nbytes and (not address or _address(address, what) + nbytes > _NOWHERE):
        raise ValueError(f"{what} is at address {address:#x}, where there cannot be {nbytes} bytes")
    return Memory(address, nbytes) if nbytes else Memory(0, 0)


def _address(number: int, what: str) -> int:
    if not 0 <= number <= _NOWHERE:
        raise ValueError(f"{what} is at {number}, which is no address")
    return number


def _require_apart(jobs: Sequence[_Given]) -> None:
    """Raises ValueError if what is written overlaps what is read or written otherwise."""
    read = [memory for given in jobs for memory in given.memory.values() if memory.nbytes]
    words = [Memory(word, 8) for word in {given.job.status for given in jobs} if word]
    outs = [given.job.out for given in jobs if given.job.out and given.job.out.nbytes]
    spans = [(one, kind) for kind, ones in enumerate((read, words, outs)) for one in ones]
    ends = [0, 0, 0]  # of what is read, of status words and of outputs that begin before
    for (start, nbytes), kind in sorted(spans):
        # What is only read may overlap, status words are shared or apart.
        if start < max(ends[1:] if kind == 0 else (ends[0], ends[2]) if kind == 1 else ends):
            what = ("a part", "a status word", "an output")[kind]
            raise ValueError(f"{what} at {start:#x} overlaps other memory of the launch that is written")
        ends[kind] = max(ends[kind], start + nbytes)
