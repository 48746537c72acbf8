"""The loader survives any library, the build survives any compiler, and the CUDA sources compile."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pointadapterx import extensions
from tests.mechanisms import exhaustive

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "extensions" / "csrc"
KERNELS = sorted((CSRC / "cuda").glob("*.cu"))
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
CUDA_INCLUDE = next(
    (
        include
        for home in (os.environ.get("CUDA_HOME", ""), NVCC and Path(NVCC).parents[1], "/usr/local/cuda")
        if home and (include := Path(home) / "include").joinpath("cuda_runtime.h").exists()
    ),
    None,
)

needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not run from a source folder")
needs_nvcc = pytest.mark.skipif(
    NVCC is None or shutil.which("gcc") is None,
    reason="nvcc was not found on the PATH or in /usr/local/cuda/bin, or gcc, which it needs, is missing",
)


@pytest.fixture
def loader(tmp_path):
    """A copy of the loader in an empty folder, with what a build leaves there."""

    def make(library: bytes | None = None, info: str | dict | None = None):
        shutil.copy(extensions.__file__, tmp_path / "__init__.py")
        if library is not None:
            (tmp_path / "_C.so").write_bytes(library)
        if info is not None:
            text = info if isinstance(info, str) else json.dumps(info)
            (tmp_path / "build_info.json").write_text(text)
        spec = importlib.util.spec_from_file_location("loader_under_test", tmp_path / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return make


def test_nothing_was_built(loader):
    module = loader()
    assert module.load() == "the compiled ops were not built"
    assert module.build_info() == {}
    assert module.rebuild_command().startswith(f'"{sys.executable}" -m pip install --no-build-isolation')


@pytest.mark.parametrize("info", ["{", "[]", ""])
def test_damaged_build_info(loader, info):
    assert loader(info=info).load() == "the compiled ops were not built"


def test_reason_and_command_of_a_failed_build_are_repeated(loader):
    module = loader(info={"torch": "2.13.0", "reason": "no compiler", "rebuild": "make it so"})
    assert module.load() == "no compiler"
    assert module.rebuild_command() == "make it so"


def test_the_command_is_of_the_python_that_runs(loader, tmp_path):
    info = {"torch": "2.13.0", "reason": "no compiler", "rebuild": 'cd "here" && {python} setup.py build_ext'}
    module = loader(info=info | {"source": str(tmp_path)})
    assert module.rebuild_command() == f'cd "here" && "{sys.executable}" setup.py build_ext'
    module = loader(info=info | {"source": str(tmp_path / "of another machine")})
    assert module.rebuild_command() == (
        f'"{sys.executable}" -m pip install --no-build-isolation --no-deps --force-reinstall . (in the source folder)'
    )


def test_library_of_another_torch_is_not_loaded(loader):
    reason = loader(b"", {"torch": "1.2.3", "reason": None}).load()
    assert reason == f"the compiled ops were built for torch 1.2.3, and this is torch {torch.__version__}"


def test_library_that_does_not_load(loader):
    reason = loader(b"no library", {"torch": torch.__version__, "reason": None}).load()
    assert reason.startswith(f"the compiled ops (built for torch {torch.__version__}) do not load into torch")
    assert "\n" not in reason


def build(tmp_path, **environment):
    """Builds into ``tmp_path`` and returns the output and what was recorded."""
    command = [sys.executable, "setup.py", "build_ext", "-b", str(tmp_path / "lib"), "-t", str(tmp_path / "temp")]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=True
    )
    folder = tmp_path / "lib" / "pointadapterx" / "extensions"
    return result.stderr, folder, json.loads((folder / "build_info.json").read_text())


@needs_sources
def test_a_failing_compiler_does_not_fail_the_build(tmp_path):
    output, folder, info = build(tmp_path, CXX="/bin/false", CC="/bin/false")
    assert info["reason"].startswith("compiling failed: ")
    assert "/bin/false" in info["reason"]
    assert list(folder.iterdir()) == [folder / "build_info.json"]
    assert f"the point ops were NOT compiled: {info['reason']}" in output
    assert info["rebuild"].replace("{python}", f'"{sys.executable}"') in output
    assert "{python} -m pip install --no-build-isolation --no-deps --force-reinstall" in info["rebuild"]


@needs_sources
def test_a_build_without_torch_says_so(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    output, _, info = build(tmp_path, PYTHONPATH=str(tmp_path))
    assert info["torch"] is None
    assert info["reason"] == "torch could not be imported while installing (no torch here); use --no-build-isolation"
    assert info["reason"] in output


def setup_module_of_the_project():
    spec = importlib.util.spec_from_file_location("setup_under_test", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_sources
def test_default_architectures():
    module = setup_module_of_the_project()
    nvcc = "compute_75\ncompute_80\ncompute_90\ncompute_100\ncompute_120\n"
    both = "sm_50 sm_80 sm_90 sm_100 sm_120 compute_120"
    assert module.default_architectures(both, nvcc) == "8.0;9.0;10.0;12.0+PTX"
    assert module.default_architectures("", nvcc) == "8.0;9.0+PTX"
    assert module.default_architectures("sm_50 sm_90a", "compute_90\n") == "9.0+PTX"


@exhaustive  # the next test compiles them too, without a word on warnings
@needs_sources
@needs_nvcc
@pytest.mark.nvcc
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_kernels_compile(kernel, tmp_path):
    command = [NVCC, "-c", str(kernel), "-o", str(tmp_path / "kernel.o"), "--fmad=false"]
    command += ["-Wno-deprecated-gpu-targets", "-Werror", "all-warnings"]
    for architecture in ("80", "90"):
        command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@needs_sources
@needs_nvcc
@pytest.mark.nvcc
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_kernels_are_built_without_contraction(kernel, tmp_path):
    """A fused multiply-add rounds once where the CPU rounds twice: sampled points would differ between devices."""

    def arithmetic(flags):
        ptx = tmp_path / "kernel.ptx"
        command = [NVCC, "--ptx", "-arch=compute_80", str(kernel), "-o", str(ptx), *flags]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        return set(re.findall(r"\b(?:fma|mad|mul|add|sub)(?:\.\w+)*\.f(?:32|64)\b", ptx.read_text()))

    flags = setup_module_of_the_project().NVCC_FLAGS
    # `mul.f32` without .rn is one that ptxas may join with an addition later on.
    kinds = {"fps.cu": ("add", "mul", "sub"), "gather.cu": ("add", "mul"), "neighbours.cu": ("add", "mul", "sub")}
    assert arithmetic(flags) == {f"{kind}.rn.f{bits}" for kind in kinds[kernel.name] for bits in (32, 64)}
    assert "--fmad=false" in flags
    assert any(found.startswith("fma") for found in arithmetic([flag for flag in flags if flag != "--fmad=false"]))


@exhaustive
@needs_sources
@pytest.mark.skipif(CUDA_INCLUDE is None, reason="cuda_runtime.h was not found")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ was not found")
@pytest.mark.nvcc
def test_cuda_binding_compiles(tmp_path):
    from torch.utils.cpp_extension import include_paths

    # A CPU build of torch leaves this header out, and the binding needs nothing of it.
    missing = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    missing.parent.mkdir(parents=True)
    missing.touch()
    command = ["g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", str(CSRC / "cuda_ops.cpp")]
    for folder in (*include_paths(), str(CUDA_INCLUDE), str(tmp_path)):
        command += ["-isystem", folder]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
