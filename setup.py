"""Packages pointadapterx, and compiles its point ops with the torch that is installed.

The compiled ops are optional: without torch, a compiler, or luck, the installation succeeds all the same,
the reason is printed and kept in ``build_info.json`` beside the loader, and the plain torch ops serve.
``--no-build-isolation`` lets pip see the installed torch; ``TORCH_CUDA_ARCH_LIST`` chooses the GPUs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    import torch
    from torch.utils import cpp_extension

    TORCH_ERROR = None
    BaseBuild: type[build_ext] = cpp_extension.BuildExtension
except Exception as error:  # a torch that is broken must not stop the installation either
    TORCH_ERROR = f"torch could not be imported while installing ({error}); use --no-build-isolation"
    BaseBuild = build_ext

ROOT = Path(__file__).parent.resolve()
NAME = "pointadapterx.extensions._C"
PYTHON = "{python}"  # in the recorded command, for the loader to fill in
CSRC = Path("extensions") / "csrc"
CPU_SOURCES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / CSRC / "cpu").glob("*.cpp"))
CUDA_SOURCES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / CSRC / "cuda").glob("*.cu"))
# Everything, CUDA included: a source distribution holds what the extension depends on.
DEPENDS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / CSRC).rglob("*.*"))

# Contraction into fused multiply-adds is off everywhere: the CPU, CUDA and plain point ops agree bit for bit.
CXX_FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-Wall"]  # of GCC and Clang, whose vectors the kernels need
if sys.platform == "linux":
    CXX_FLAGS.append("-fopenmp")  # at::parallel_for; not linked, torch has loaded its own runtime
NVCC_FLAGS = ["-O3", "--fmad=false"]


def cuda_problem() -> str | None:
    """Why CUDA kernels cannot be compiled, or ``None``. A visible GPU is not needed."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA support"
    if cpp_extension.CUDA_HOME is None or not shutil.which(str(Path(cpp_extension.CUDA_HOME, "bin", "nvcc"))):
        return "nvcc was not found; install the CUDA toolkit or set CUDA_HOME"
    return None


def default_architectures(torch_flags: str, nvcc_output: str) -> str:
    """The GPUs that this torch was built for and this nvcc knows, plus PTX of the newest for later ones.

    Args:
        torch_flags: such as ``"sm_80 sm_90 compute_90"``.
        nvcc_output: of ``nvcc --list-gpu-arch``, lines of ``compute_80``.
    """

    def numbers(text: str, prefix: str) -> set[int]:
        return {int(number) for number in re.findall(rf"\b{prefix}_(\d+)\b", text)}

    known = numbers(nvcc_output, "compute")
    wanted = sorted(numbers(torch_flags, "sm") & known) or sorted({80, 90} & known)
    return ";".join(f"{number // 10}.{number % 10}" for number in wanted) + "+PTX"


def set_architectures() -> None:
    """Fills TORCH_CUDA_ARCH_LIST unless the user did; torch would otherwise ask for a visible GPU."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return
    nvcc = Path(str(cpp_extension.CUDA_HOME), "bin", "nvcc")
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    os.environ["TORCH_CUDA_ARCH_LIST"] = default_architectures(torch._C._cuda_getArchFlags() or "", listed)


def point_ops(cuda: bool) -> Extension:
    """The library, for CPU alone or with CUDA kernels."""
    sources = [*CPU_SOURCES, (CSRC / "cpu_ops.cpp").as_posix(), (CSRC / "expert_ops.cpp").as_posix()]
    flags = {"cxx": CXX_FLAGS}
    if cuda:
        sources += [*CUDA_SOURCES, (CSRC / "cuda_ops.cpp").as_posix()]
        flags["nvcc"] = NVCC_FLAGS
    if TORCH_ERROR is not None:
        return Extension(NAME, sources, depends=DEPENDS, optional=True)
    kind = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    return kind(NAME, sources, depends=DEPENDS, optional=True, extra_compile_args=flags)


class BuildPointOps(BaseBuild):
    """Compiles with CUDA where possible, else for the CPU, else not at all, and records which."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The library is loaded by torch.ops.load_library; it is no Python module and fits any Python.
        options = {} if TORCH_ERROR else {"no_python_abi_suffix": True}
        super().__init__(*args, **kwargs, **options)
        self.info: dict[str, Any] = {
            "torch": None if TORCH_ERROR else torch.__version__,
            "reason": TORCH_ERROR,
            "cuda_reason": None,
            "cuda_architectures": [],
        }
        self.cuda_failed = False

    def build_extensions(self) -> None:
        """Tries the variants in turn; a failure is recorded, not raised."""
        Path(self.get_ext_fullpath(NAME)).unlink(missing_ok=True)  # of an earlier build
        if TORCH_ERROR is not None:
            return
        self.info["cuda_reason"] = cuda_problem()
        if self.info["cuda_reason"] is None:
            self.info["cuda_reason"] = self._attempt(cuda=True)
            if self.info["cuda_reason"] is None:
                self.info["cuda_architectures"] = self._built_architectures()
                return
            self.cuda_failed = True
        self.info["reason"] = self._attempt(cuda=False)

    def _attempt(self, cuda: bool) -> str | None:
        # The command has prepared its extension object, so the object stays and its content changes.
        extension = self.extensions[0]
        vars(extension).update(vars(point_ops(cuda)))
        extension.optional = False  # setuptools would swallow the error that is to be recorded here
        try:
            if cuda:
                set_architectures()
            super().build_extensions()
        except Exception as error:  # whatever went wrong, the plain ops can serve
            Path(self.get_ext_fullpath(NAME)).unlink(missing_ok=True)
            compiler = os.environ.get("CXX", "the C++ compiler") + (" or nvcc" if cuda else "")
            line = str(error).strip().partition("\n")[0]
            return f"compiling failed: {line} ({compiler}); the build log has the details"
        finally:
            extension.optional = True  # a missing library must not stop the rest of the installation
        return None

    @staticmethod
    def _built_architectures() -> list[str]:
        listed = os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";").split(";")
        return ["sm_" + entry.replace(".", "") for entry in listed if entry]

    def _report(self, what: str, reason: str) -> None:
        command = self.info["rebuild"].replace(PYTHON, f'"{sys.executable}"')
        print(
            f"\npointadapterx: {what}: {reason}\n"
            f"The slower plain torch ops will serve instead. To try again: {command}\n",
            file=sys.stderr,
        )

    def run(self) -> None:
        """Builds, then leaves ``build_info.json`` where the loader will look for it."""
        super().run()
        library = Path(self.get_ext_fullpath(NAME))
        self.info["source"] = str(ROOT)
        if self.inplace:
            self.info["rebuild"] = f'cd "{ROOT}" && {PYTHON} setup.py build_ext --inplace'
        else:
            self.info["rebuild"] = f'{PYTHON} -m pip install --no-build-isolation --no-deps --force-reinstall "{ROOT}"'
        if self.info["reason"] is not None:
            library.unlink(missing_ok=True)
            self._report("the point ops were NOT compiled", self.info["reason"])
        elif self.cuda_failed:
            self._report("the point ops were compiled for the CPU but NOT for CUDA", self.info["cuda_reason"])
        library.parent.mkdir(parents=True, exist_ok=True)
        library.with_name("build_info.json").write_text(json.dumps(self.info, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    setup(
        packages=[
            *find_packages(include=["pointadapterx", "pointadapterx.*"]),
            "pointadapterx.datasets",
            *(f"pointadapterx.datasets.{name}" for name in find_packages("datasets")),
            "pointadapterx.extensions",
            "pointadapterx.cfgs",
        ],
        # Nothing named `datasets`, `extensions` or `cfgs` may reach site-packages and shadow other libraries.
        package_dir={
            "pointadapterx": "pointadapterx",
            "pointadapterx.datasets": "datasets",
            "pointadapterx.extensions": "extensions",
            "pointadapterx.cfgs": "cfgs",
        },
        package_data={
            "pointadapterx.datasets": ["embedded/*.h5", "embedded/*.md", "embedded/**/*"],
            "pointadapterx.building": ["lists/*.tsv"],
            "pointadapterx.cfgs": ["*.yaml", "**/*.yaml"],
            "pointadapterx": ["py.typed", "weights/*", "adapters/*"],
            "pointadapterx.report": ["*.css", "*.js"],
            "pointadapterx.serving": ["*.css", "*.html", "*.js"],
            "pointadapterx.templates": ["*.html", "*.md"],
        },
        include_package_data=False,  # only what package_data names: sources do not belong into a wheel
        ext_modules=[point_ops(cuda=False)],
        cmdclass={"build_ext": BuildPointOps},
    )
