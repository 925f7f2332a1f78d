"""The CUDA decoder: device addresses and a stream in, dense elements in device memory out. No torch here.

Everything is put onto the caller's stream, in the caller's current context: nothing is allocated and
nothing waits. A tensor's parts (spec 8) and its output are addresses, as ``data_ptr()`` of torch or
``__cuda_array_interface__`` give them (:mod:`pyendor.dlpack` takes them from arrays); who hands them over
keeps the memory until the stream has got there. ``meta`` of a job is that of a
:class:`~pyendor.encoded.EncodedTensor`, which ``get_encoded`` of an open file gives.

    job = Job(meta, packed(meta, base), out=dense.data_ptr(), status=word.data_ptr())
    launch = Launch([job, ...])  # the matrices of a layer: one kernel
    launch(stream)               # as often as wanted, in a CUDA graph too
    ...                          # later, when `word` has been copied to the host:
    check(int(word))

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
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyendor import capi, dtypes, layout
from pyendor.errors import BackendUnavailableError, FormatError
from pyendor.layout import BLOCK, blocks
from pyendor.metadata import TensorMeta

__all__ = [
    "Fault",
    "Job",
    "Launch",
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
_REFUSED = "the CUDA decoder refuses its arguments: a range or an address makes no sense"


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

    Addresses are those of device memory, or of host memory that the device can use. Parts and output need no
    alignment; multiples of 16 are fast.

    Attributes:
        meta: entry of the tensor, of a supported encoding.
        parts: the address of each part, by role; their lengths are those of B-2, to which the parts of an
            :class:`~pyendor.encoded.EncodedTensor` are held.
        out: where the elements go, ``(min(stop * 4096, numel) - first * 4096) * itemsize`` bytes; None to
            check only.
        status: the address of a status word, a multiple of 8; None for parts that were checked before. Jobs
            may share one: of their faults that of the lowest block remains.
        first: the block of 4096 elements that the range begins with.
        stop: the block behind its last one; None stands for the number of blocks.
    """

    meta: TensorMeta
    parts: Mapping[str, int]
    out: int | None
    status: int | None = None
    first: int = 0
    stop: int | None = None


class Launch:
    """Jobs, ready to be launched: one kernel for every 32 that have elements of one size.

    It is called, as ``launch(stream)``, as often as wanted, also while the stream is captured into a CUDA
    graph (after :func:`load`).

    Args:
        jobs: what is to be decoded; they are copied, the memory that they name is not.

    Raises:
        BackendUnavailableError: there is no CUDA here (:func:`unavailable` says why).
        ValueError: a number of a job is negative or too large.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._cuda = _require()
        self._count = len(jobs)
        try:
            self._jobs = _native.ffi.new("endor_cuda_job[]", [_members(job) for job in jobs])
        except OverflowError as error:
            raise ValueError(_REFUSED) from error

    def __call__(self, stream: int = 0, outs: Sequence[int] | None = None) -> None:
        """Puts it onto a stream.

        Args:
            stream: a ``CUstream`` or ``cudaStream_t`` as a number, such as that of
                ``torch.cuda.current_stream().cuda_stream``; 0 is the default stream.
            outs: the addresses of other outputs than those of the jobs, in their order, from now on. Not
                while another thread launches this.

        Raises:
            ValueError: a job makes no sense. Nothing was launched.
            RuntimeError: the driver refused.
            IndexError: there are more outputs than jobs. Nothing was launched.
        """
        for i, out in enumerate(outs or ()):
            self._jobs[i].out = _pointer(out)
        lib, ffi = _native.lib, _native.ffi
        result = ffi.new("int *")
        status = lib.endor_cuda_decode(
            self._cuda, self._jobs, self._count, ffi.cast("void *", stream), result
        )
        if status == lib.ENDOR_DRIVER:
            text = ffi.string(lib.endor_cuda_message(self._cuda, result[0])).decode()
            raise RuntimeError(f"CUDA: {text} (error {result[0]})")
        if status != lib.ENDOR_OK:
            raise ValueError(_REFUSED)


def decode(jobs: Sequence[Job], stream: int = 0) -> None:
    """Launches jobs once, as :class:`Launch` does.

    Args:
        jobs: what is to be decoded.
        stream: a ``CUstream`` or ``cudaStream_t`` as a number; 0 is the default stream.

    Raises:
        BackendUnavailableError: there is no CUDA here.
        ValueError: a job makes no sense. Nothing was launched.
        RuntimeError: the driver refused.
    """
    Launch(jobs)(stream)


def packed(meta: TensorMeta, base: int) -> dict[str, int]:
    """The addresses of parts that lie one behind the other, in the order of B-2, from ``base`` on.

    So they lie in a canonical file (W-3), and in device memory that they were copied to in one piece. Where
    ``base`` is a multiple of 64, all of them are.

    Args:
        meta: entry of the tensor, of a supported encoding.
        base: the address of the first part.

    Returns:
        Addresses by role, as :class:`Job` takes them.
    """
    specs = layout.part_specs(meta)
    starts = itertools.accumulate((spec.nbytes for spec in specs), initial=base)
    return {spec.role: start for spec, start in zip(specs, starts, strict=False)}


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


def available() -> bool:
    """Whether there is a device, and kernels in this build that run on it; found out once."""
    return unavailable() is None


def unavailable() -> str | None:
    """Why there is no CUDA decoder here; None if there is one."""
    if _native is None:
        return "pyendor was installed without its native codec, for which a C compiler is needed"
    if _opened(os.environ.get(DRIVER)) is not None:
        return None
    if not kernels_nbytes():
        return "pyendor was built without nvcc, and has no CUDA kernels"
    return "there is no CUDA driver here, no device, or none that the kernels of this build run on"


def kernels_nbytes() -> int:
    """Bytes of the compiled kernels in this build; 0 if it was built without nvcc."""
    return int(_native.lib.endor_cuda_kernels_size()) if _native is not None else 0


def load() -> None:
    """Loads the kernels into the current context, before the first launch there is captured into a graph.

    Otherwise the first launch does it, which may wait for the device.

    Raises:
        BackendUnavailableError: there is no CUDA here.
        RuntimeError: the driver refused.
    """
    cuda, result = _require(), _native.ffi.new("int *")
    if _native.lib.endor_cuda_load(cuda, result):
        text = _native.ffi.string(_native.lib.endor_cuda_message(cuda, result[0])).decode()
        raise RuntimeError(f"CUDA: {text} (error {result[0]})")


@functools.cache
def _opened(driver: str | None) -> Any:
    """The decoder with this driver; None if there is none."""
    opened = _native.ffi.new("endor_cuda **")
    path = _native.ffi.NULL if driver is None else os.fsencode(driver)
    return opened[0] if _native.lib.endor_cuda_open(path, opened) == _native.lib.ENDOR_OK else None


def _require() -> Any:
    why = unavailable()
    if why is not None:
        raise BackendUnavailableError(f"no CUDA decoder: {why}")
    return _opened(os.environ.get(DRIVER))


def _members(job: Job) -> tuple[Any, ...]:
    """The members of an ``endor_cuda_job``."""
    meta = job.meta
    nbytes = {spec.role: spec.nbytes for spec in layout.part_specs(meta)}
    parts = [(_pointer(job.parts.get(role)), nbytes.get(role, 0)) for role in capi.ROLES]
    stop = blocks(meta.numel) if job.stop is None else job.stop
    size = max(0, min(stop * BLOCK, meta.numel) - job.first * BLOCK) * dtypes.BY_NAME[meta.dtype].itemsize
    return (
        capi.tensor(meta),
        tuple(itertools.chain.from_iterable(parts)),
        job.first,
        stop,
        _pointer(job.out),
        size if job.out else 0,
        _native.ffi.cast("uint64_t *", job.status or 0),
    )


def _pointer(address: int | None) -> Any:
    return _native.ffi.cast("void *", address or 0)
