"""Pages in a headless Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

BROWSER = os.environ.get("POINTADAPTERX_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
WEBGL = ["--enable-unsafe-swiftshader"]
STILL = ["--disable-3d-apis"]


@contextmanager
def page_of(
    address: str, flags: Sequence[str] = WEBGL, size: tuple[int, int] = (1000, 800), **options: Any
) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A page, what it complains of, and the addresses that it asks for."""
    if BROWSER is None:
        pytest.skip("no Chromium here; install chromium, or set POINTADAPTERX_BROWSER")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    complaints: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", *flags])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, **options)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda made: requests.append(made.url))
        page.goto(address)
        yield page, complaints, requests
        browser.close()
