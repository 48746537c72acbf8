from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from tests.conftest import randomise
from tests.parts import CLASSES, parts_config
from tests.required import required

PACKAGES = ("starlette", "uvicorn", "prometheus_client")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []
if MISSING and "packages" in required():
    raise pytest.UsageError(f"{', '.join(MISSING)}: not installed, which the extra serve brings")
if not MISSING:
    from tests.serving.running import BEFORE, READY, Running


@pytest.fixture(scope="session")
def parts_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of part segmentation, with random values."""
    config = parts_config("lora")
    path = tmp_path_factory.mktemp("parts") / "parts.safetensors"
    save_adapter(randomise(build_model(config)), path, config=config, classes=CLASSES)
    return path


@pytest.fixture(scope="session")
def sources(parts_adapter: Path) -> dict[str, Path]:
    """Two backbones, two tasks, and full fine-tuning, which is a backbone of its own."""
    small = {name: BEFORE / f"{name}.safetensors" for name in ("dapt_x", "lora", "linear", "full")}
    return {"ldraw20": READY, "parts": parts_adapter, **small}


@pytest.fixture(scope="session")
def running(sources: dict[str, Path]) -> Iterator[Running]:
    with Running(sources, wait=0.02) as found:
        yield found
