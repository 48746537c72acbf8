"""The page: a scan is dropped, turned, compared; mistakes are said kindly; keys and a phone are enough."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointadapterx.tasks.pixel_answers import PixelLabels
from tests.browser import STILL, WEBGL, page_of
from tests.serving.running import Running, npy

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def opened(running: Running) -> Iterator[tuple[Any, list[str], list[str]]]:
    """Somebody who wants nothing to move is shown it at rest, so that screenshots can be compared."""
    with page_of(running.address, WEBGL, reduced_motion="reduce") as found:
        yield found


def answered(page: Any, name: str) -> None:
    page.get_by_role("status").filter(has_text=f"Answered: {name}").wait_for()


def overflows(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


def test_without_webgl_and_with_a_token(sources: dict[str, Path], tmp_path: Path) -> None:
    token = "correct-horse-battery"
    with Running({"lora": sources["lora"]}, token=token) as running, page_of(running.address, STILL) as (page, _, _):
        page.get_by_role("alert").filter(has_text="This server needs a token").wait_for()
        page.get_by_label("Token of this server").fill(token)
        page.get_by_label("Token of this server").press("Tab")
        page.get_by_label("Adapter").locator("option").first.wait_for(state="attached")
        file = npy(tmp_path, 5)
        page.get_by_label("Drop a scan here, or choose one").set_input_files(file)
        answered(page, file.name)
        assert "no WebGL" in page.locator("section.result figure").inner_text()
        running.server.should_exit = True
        running._thread.join(10)
        page.get_by_label("Drop a scan here, or choose one").set_input_files(npy(tmp_path, 6))
        page.get_by_role("alert").filter(has_text="The server does not answer").wait_for()


def test_a_scan_is_answered_turned_and_compared(
    opened: tuple[Any, list[str], list[str]], running: Running, tmp_path: Path
) -> None:
    page, complaints, requests = opened
    file = npy(tmp_path, 1, 1500)
    page.get_by_label("Adapter").select_option("dapt_x")
    page.get_by_label("Drop a scan here, or choose one").set_input_files(file)
    answered(page, file.name)
    card = page.locator("section.result")
    assert card.count() == 1
    (found,) = running.predict(f"adapter=dapt_x&file={file.name}", file.read_bytes()).content["answers"]
    assert card.locator(".answer").inner_text() == found["classes"][0]
    assert f"{100 * found['probabilities'][0]:.1f} %" in card.locator(".classes").inner_text()
    assert f"novelty {found['novelty']:.2f}" in card.locator(".sure").inner_text()

    canvas = card.locator("canvas")
    before, box = canvas.screenshot(), canvas.bounding_box()
    page.mouse.move(box["x"] + 80, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 130, box["y"] + 90, steps=5)
    page.mouse.up()
    turned = canvas.screenshot()
    assert turned != before
    canvas.press("ArrowLeft")
    assert canvas.screenshot() != turned
    rest = canvas.screenshot()
    assert canvas.screenshot() == rest
    turning = card.get_by_role("button", name="Turn")
    assert turning.get_attribute("aria-pressed") == "false"
    turning.press("Enter")
    page.wait_for_timeout(100)
    turning.press("Enter")
    assert canvas.screenshot() != rest

    colours = card.get_by_label("Colours")
    names = colours.locator("option").all_inner_texts()
    assert names[0] == "height"
    assert names[-1] == "what the answer depends on"
    for name, words in ((names[1], "expert 1"), (names[-1], "less sure")):
        shown = canvas.screenshot()
        colours.select_option(name)
        card.locator(".legend").filter(has_text=words).wait_for()
        assert canvas.screenshot() != shown

    page.get_by_label("Compare with").select_option("parts")
    page.get_by_label("The object is a").select_option("mug")
    page.locator("section.result").nth(1).wait_for()
    assert page.locator("section.result h2").all_inner_texts() == ["dapt_x", "parts"]
    second = page.locator("section.result").nth(1)
    assert second.locator(".answer").inner_text() in ("body", "handle")
    assert "shares of 1,500 points" in second.locator(".sure").inner_text()
    assert second.get_by_label("Colours").input_value() == "parts"
    assert second.locator(".legend .swatch").count() >= 1
    assert complaints == []
    assert all(made.startswith(running.address) or made.startswith(("data:", "blob:")) for made in requests)


def test_mistakes_are_said_kindly_and_the_next_file_works(
    opened: tuple[Any, list[str], list[str]], tmp_path: Path
) -> None:
    page, complaints, _ = opened
    page.get_by_label("Adapter").select_option("lora")
    page.get_by_label("Compare with").select_option("")
    broken, odd, good = tmp_path / "<b>broken.npy", tmp_path / "letter.docx", npy(tmp_path, 2)
    broken.write_bytes(b"nothing")
    odd.write_bytes(b"nothing")
    for file, words in ((broken, "<b>broken.npy: cannot be read as .npy"), (odd, "'.docx' is no kind of file")):
        page.get_by_label("Drop a scan here, or choose one").set_input_files(file)
        page.get_by_role("alert").filter(has_text=words).wait_for()
        assert page.locator("section.result").count() == 0
    page.get_by_label("Drop a scan here, or choose one").set_input_files(good)
    answered(page, good.name)
    assert not page.get_by_role("alert").is_visible()
    assert [text for text in complaints if "status of 4" not in text] == []
    complaints.clear()


def test_classes_of_pixels_are_shown_and_an_answer_of_no_known_kind_is_said(
    opened: tuple[Any, list[str], list[str]], tmp_path: Path
) -> None:
    """Answers as those of adapters that segment pictures, which are large, and one that the page cannot show."""
    page, complaints, _ = opened
    labels, sure = np.array([[1, 1, 1, 0]] * 2, np.uint8), np.full((2, 4), 0.5, np.float16)
    answer = PixelLabels("a.npy", "pixels", ["dark"], labels, sure, ["sky", "tree"])
    for content, words in ((answer.content(), None), ({"shares": {"sky": 1}}, "This page cannot show the answer of")):
        body = json.dumps({"file": "a.npy", "text": answer.text(), "answer": content})
        page.route("**/look?*", lambda route, _, body=body: route.fulfill(body=body))
        page.get_by_label("Drop a scan here, or choose one").set_input_files(npy(tmp_path, 7 + (words is None)))
        if words is None:
            card = page.locator("section.result")
            card.wait_for()
            assert card.locator(".answer").inner_text() == "tree"
            assert card.locator(".sure").inner_text() == "shares of 4 × 2 pixels; mean confidence 0.50"
            shares = card.locator(".classes li").all_inner_texts()
            assert [text.split() for text in shares] == [["tree", "75.0", "%"], ["sky", "25.0", "%"]]
            assert card.locator(".warnings").inner_text() == "dark"
        else:
            page.get_by_role("alert").filter(has_text=words).wait_for()
        page.unroute("**/look?*")
    assert [text for text in complaints if "image" not in text] == []
    complaints.clear()


def test_a_file_can_be_dropped_and_keys_reach_everything(
    opened: tuple[Any, list[str], list[str]], tmp_path: Path
) -> None:
    page, _, _ = opened
    content = list(npy(tmp_path, 3).read_bytes())
    page.evaluate(
        """content => {
          const given = new DataTransfer();
          given.items.add(new File([new Uint8Array(content)], "dropped.npy"));
          document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true }));
        }""",
        content,
    )
    answered(page, "dropped.npy")
    page.get_by_label("Drop a scan here, or choose one").focus()
    reached = []
    for _ in range(6):
        reached.append(page.evaluate("document.activeElement.tagName + document.activeElement.className"))
        page.keyboard.press("Tab")
    assert reached[:3] == ["INPUT", "SELECT", "SELECT"]
    assert {"CANVAS", "SELECTcolours", "BUTTONturning"} <= set(reached)
    unnamed = "Array.from(document.querySelectorAll('input, select, canvas, meter')).filter(e => "
    unnamed += "!e.closest('[hidden]') && !e.getAttribute('aria-label') && !(e.labels && e.labels.length)).length"
    assert page.evaluate(unnamed) == 0


def test_it_fits_a_phone(opened: tuple[Any, list[str], list[str]], tmp_path: Path) -> None:
    page, complaints, _ = opened
    page.set_viewport_size({"width": 320, "height": 640})
    page.get_by_label("Adapter").select_option("dapt_x")
    page.get_by_label("Compare with").select_option("ldraw20")
    file = npy(tmp_path, 4)
    page.get_by_label("Drop a scan here, or choose one").set_input_files(file)
    page.locator("section.result").nth(1).wait_for()
    assert not overflows(page)
    lefts = [box.bounding_box()["x"] for box in page.locator("section.result").all()]
    assert lefts[0] == lefts[1]  # below each other
    assert complaints == []
