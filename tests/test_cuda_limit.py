"""What the benchmarks measure decoding against, on a machine with a driver and without nvcc."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from pyendor import cuda

# A driver that takes PTX with an entry of the name that is asked for, and runs the source of that on the CPU.
DRIVER = r"""
#include <cstring>
#include "native/cuda/simt/simt.h"
#include "benchmarks/limit.cu"

static const char *loaded;
static void run(const void *given) {
    void *const *a = static_cast<void *const *>(given);
    limit(*static_cast<uint4 **>(a[0]), *static_cast<uint4 **>(a[1]), *static_cast<unsigned *>(a[2]),
          *static_cast<unsigned *>(a[3]));
}
extern "C" int cuModuleLoadData(void **module, const char *image) {
    loaded = strdup(image);
    *module = const_cast<char *>(loaded);
    return strstr(image, "\n.version ") && strstr(image, "\n.target sm_75\n") ? 0 : 218;
}
extern "C" int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = reinterpret_cast<void *>(run);
    return module == loaded && !strcmp(name, "limit") &&
           strstr(loaded, "\n.visible .entry limit(\n") ? 0 : 500;
}
extern "C" int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned lanes, unsigned, unsigned,
                              unsigned shared, void *, void **arguments, void **) {
    if (y != 1 || z != 1 || !strstr(loaded, "\n.maxntid 256, 1, 1\n") || lanes != 256) return 1;
    simt::launch(reinterpret_cast<void (*)(const void *)>(f), arguments, x, lanes, shared);
    return 0;
}
"""


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / "benchmarks" / "cuda_limit.py"
    if not path.exists():
        pytest.skip("the benchmarks are not here")
    spec = importlib.util.spec_from_file_location("cuda_limit", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Memory:
    """As much of a tensor as is asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def numel(self) -> int:
        return int(self.array.size)

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)


def guarded(nbytes: int) -> np.ndarray:
    """Memory at a multiple of 16, and 64 bytes behind it."""
    memory = np.zeros(nbytes + 80, np.uint8)
    return memory[-memory.ctypes.data % 16 :][: nbytes + 64]


def test_it_runs_without_nvcc(limit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "driver.cpp").write_text(DRIVER)
    sources = [tmp_path / "driver.cpp", ROOT / "native" / "cuda" / "simt" / "simt.cpp"]
    library = tmp_path / "libcuda.so"
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-w", f"-I{ROOT}"]
    subprocess.run([compiler, *options, *map(str, sources), "-o", str(library)], check=True)
    monkeypatch.setenv(cuda.DRIVER, str(library))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NVCC", str(tmp_path / "none"))
    assert limit.find_nvcc() is None
    kernel = limit.Limit(True)
    assert kernel.here()
    assert not limit.Limit(False).here()
    tile, ctas, reads = 8192, 3, 5000 // 16 * 16
    source, out = guarded(ctas * reads), guarded(ctas * tile)
    source[: ctas * reads] = np.random.default_rng(1).integers(0, 256, ctas * reads)
    kernel.run(Memory(source[: ctas * reads]), Memory(out[: ctas * tile]), tile, 0)
    # A lane writes what it has read, all of it, so that no read can be left out.
    words = source[: ctas * reads].reshape(ctas, -1, 16)
    for number in range(ctas):
        written = out[number * tile : (number + 1) * tile].reshape(-1, 256, 16)
        for lane in (0, 1, 55, 56, 255):
            expected: Any = np.bitwise_xor.reduce(words[number, lane::256], axis=0)
            assert (written[:, lane] == expected).all()
    assert not out[ctas * tile :].any()


def test_the_image_is_that_of_the_source(
    limit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, rest = limit.IMAGE.read_text().partition("\n")
    assert first == limit.made_from(limit.SOURCE.read_bytes())
    other = tmp_path / "limit.cu"
    other.write_bytes(limit.SOURCE.read_bytes() + b"\n")
    nvcc = limit.find_nvcc()
    if nvcc is not None:
        again = limit.compiled(nvcc).partition("\n")[2]
        release = next(line for line in rest.splitlines() if "release" in line)
        if release in again:  # another one may have other instructions
            assert again == rest
    monkeypatch.setattr(limit, "SOURCE", other)
    with pytest.raises(RuntimeError, match="was made from another"):
        limit.Limit(True)
