"""The inspector in a real browser: what it shows is what the command says, and nothing leaves the page.

Needs Chromium and the extra ``browser``; without them the tests are skipped, or with PYENDOR_BROWSER=1 fail,
as in ``make inspector``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import NEEDS_BROWSER, barriers, serve
from conftest import ROOT, raw_file

from pyendor.numpy import save_file

INSPECTOR = ROOT / "docs" / "inspector"
CORPUS = ROOT / "conformance"
CASES = json.loads((CORPUS / "manifest.json").read_text())["cases"]

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, below a path as on a site of projects."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(INSPECTOR, root / "a" / "project" / "inspector")
    with serve(root) as address:
        yield f"{address}a/project/inspector/"


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Any]:
    """A fresh page; errors of its scripts, and requests to anywhere else, fail the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    one = context.new_page()
    faults: list[str] = []
    one.on("pageerror", lambda error: faults.append(str(error)))
    one.on("console", lambda text: faults.append(text.text) if text.type in {"error", "warning"} else None)
    one.on(
        "request",
        lambda request: None if request.url.startswith((site, "data:")) else faults.append(request.url),
    )
    one.goto(site)
    yield one
    context.close()
    assert not faults


def choose(page: Any, *paths: Path) -> None:
    page.set_input_files("#files", [str(path) for path in paths])


def drop(page: Any, *paths: Path) -> None:
    """Drops files as a hand would: real ones, that the page may slice."""
    page.evaluate(
        """document.body.append(
            Object.assign(document.createElement("input"), { type: "file", id: "hand", multiple: true })
        )"""
    )
    page.set_input_files("#hand", [str(path) for path in paths])
    page.evaluate(
        """() => {
            const hand = document.getElementById("hand");
            const dataTransfer = new DataTransfer();
            for (const file of hand.files) dataTransfer.items.add(file);
            hand.remove();
            const options = { dataTransfer, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent("drop", options));
        }"""
    )


def facts(page: Any, within: str = ".summary") -> dict[str, str]:
    pairs = page.eval_on_selector_all(
        f"{within} .facts > div",
        "all => all.map(one => [one.children[0].innerText, one.children[1].innerText])",
    )
    return dict(pairs)


def rows(page: Any) -> dict[str, dict[str, str]]:
    """The table of tensors, by name."""
    heads, lines = page.evaluate(
        """() => {
            const table = document.querySelector(".tensors table");
            const texts = (row) => [...row.children].map((cell) => cell.innerText.trim());
            return [texts(table.tHead.rows[0]), [...table.tBodies[0].rows].map(texts)];
        }"""
    )
    return {line[0]: dict(zip(heads, line, strict=True)) for line in lines}


def inspected(path: Path) -> dict[str, Any]:
    """What the command says."""
    run = subprocess.run(
        [sys.executable, "-m", "pyendor", "inspect", "--json", str(path)], capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def wait(page: Any, text: str, timeout: float = 60) -> None:
    page.locator("#status").filter(has_text=text).wait_for(timeout=1000 * timeout)


def test_a_model_is_shown_as_the_command_shows_it(page: Any, compressed: Path) -> None:
    (file,) = compressed.glob("*.safetensors")
    report = inspected(file)
    tensors = {row["name"]: row for row in report["tensors"]}
    drop(page, file)
    wait(page, "measured")
    shown = facts(page)
    assert shown["Format"] == f"Endor {report['version']}"
    assert (shown["Tensors"], shown["Encoded"]) == (
        str(len(tensors)),
        str(sum(row["encoded"] for row in tensors.values())),
    )
    assert shown["Size"] == f"{report['file_bytes'] / 1e6:.1f} MB"
    assert shown["Dense size"] == f"{report['dense_bytes'] / 1e6:.1f} MB"
    assert shown["Elements"] == f"{sum(row['numel'] for row in tensors.values()):,}"

    table = rows(page)
    assert table.keys() == tensors.keys()
    for name, tensor in tensors.items():
        row = table[name]
        assert row["Type"] == tensor["dtype"]
        assert row["Shape"] == (" × ".join(map(str, tensor["shape"])) or "scalar")
        assert row["Encoding"] == (tensor["encoding"] if tensor["encoded"] else "plain")
        assert row["Entropy floor"] == f"{tensor['floor']:.2f}"
        assert row["Bits per weight"] == f"{8 * tensor['stored_bytes'] / tensor['numel']:.2f}"

    page.click("text=Check every byte")
    wait(page, "digests match")
    for name, row in rows(page).items():
        nnz, numel = tensors[name]["nnz"], tensors[name]["numel"]
        assert row["Non-zeros"] == (f"{nnz:,}" if nnz is not None else row["Non-zeros"])
        share = float(row["Density"].removesuffix(" %")) / 100
        assert nnz is None or abs(share - nnz / numel) < 0.0006
        assert abs(float(row["Entropy floor"]) - tensors[name]["floor"]) < 0.1  # of all elements now


def test_what_endor_makes_of_a_dense_model(page: Any, pruned: Path) -> None:
    (file,) = pruned.glob("*.safetensors")
    choose(page, file)
    wait(page, "measured")
    assert facts(page)["Format"] == "safetensors"
    page.click("text=Check every byte")
    wait(page, "there are no digests")
    for tensor in inspected(file)["tensors"]:
        if tensor["encoding"] is None or ".0." not in tensor["name"]:
            continue
        sheet(page, tensor["name"])
        text = page.inner_text("dialog .scale")
        size = f"{8 * tensor['endor_bytes'] / tensor['numel']:.2f}"
        assert re.search(rf"as {tensor['encoding']}\s+{re.escape(size)}\s", text), text
        page.click("dialog >> text=Close")


def sheet(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()
    page.locator("dialog[open]").wait_for()


def test_a_bitmap_is_that_of_the_tensor(page: Any, tmp_path: Path) -> None:
    weight = np.zeros((64, 96), np.float32)
    weight[:, :32] = 1.5  # the left third, but for one element
    weight[10, 5] = 0
    save_file({"w": np.kron(weight, np.ones((2, 2), np.float32))}, tmp_path / "w.safetensors")
    choose(page, tmp_path / "w.safetensors")
    wait(page, "measured")
    assert rows(page)["w"]["Encoding"] == "bitmap/split 1"
    sheet(page, "w")
    where = page.locator("#bitmap-where")
    where.filter(has_text="rows 0 to 127, columns 0 to 191").wait_for()

    # Places of the tensor, 0 to 1 from the left and the top, and whether they are coloured.
    places = {(0.05, 0.5): True, (0.3, 0.9): True, (0.36, 0.5): False, (0.9, 0.1): False}
    places |= {(5.5 / 96, 10.5 / 64): False, (6.5 / 96, 10.5 / 64): True}
    pixels = """places => {
        const canvas = document.querySelector("canvas");
        const { width, height } = canvas;
        const scale = Math.min(width / 192, height / 128, 32);
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        return places.map(([x, y]) => {
            const px = Math.round((width - 192 * scale) / 2 + 192 * scale * x);
            const py = Math.round((height - 128 * scale) / 2 + 128 * scale * y);
            return [...data.slice(4 * (py * width + px), 4 * (py * width + px) + 4)];
        });
    }"""
    for (red, _, _, alpha), dark in zip(page.evaluate(pixels, list(places)), places.values(), strict=True):
        assert (red < 100, alpha) == (dark, 255)
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("dialog .value", has_text="= 0  (0x00000000)").wait_for()


def test_the_keyboard_is_enough(page: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    weight = rng.standard_normal((64, 256), dtype=np.float32)
    save_file({"a": weight * (rng.random((64, 256)) < 0.5), "b": weight}, tmp_path / "two.safetensors")
    focus = "() => document.activeElement.id || document.activeElement.textContent"
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focus))
    assert reached == ["specification", "files", "folder"]
    choose(page, tmp_path / "two.safetensors")
    wait(page, "measured")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(focus) == "a":
            break
    page.keyboard.press("Enter")
    page.locator("dialog[open]").wait_for()
    where = page.locator("#bitmap-where")
    where.filter(has_text="columns 0 to 255").wait_for()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.tagName") == "CANVAS":
            break
    for _ in range(4):
        page.keyboard.press("+")
    where.filter(has_text=re.compile("columns [1-9]")).wait_for()
    page.locator("dialog .value", has_text="0x").wait_for()
    middle = where.inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "before => document.getElementById('bitmap-where').innerText !== before", arg=middle
    )
    page.keyboard.press("0")
    where.filter(has_text="columns 0 to 255").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate(focus) == "a"  # back where it was


def one_per_rule() -> list[Any]:
    """For each rule the first file of the corpus that breaks it and no other, or it first."""
    files = [
        case
        for case in CASES
        if case["expect"] == "reject" and case["category"] not in {"slice", "directory"}
    ]
    cases = []
    for rule in sorted({case["error_rules"][0] for case in files}):
        about = [case for case in files if case["error_rules"][0] == rule and "recipe" not in case]
        cases.append(pytest.param(min(about, key=lambda case: len(case["error_rules"])), id=rule))
    return cases


@pytest.mark.parametrize("case", one_per_rule())
def test_a_faulty_file_shows_its_rule(page: Any, case: dict[str, Any]) -> None:
    choose(page, CORPUS / case["file"])
    page.locator("#report h2").first.wait_for()
    if page.locator(".problems:visible").count() == 0:
        page.click("text=Check every byte")
        wait(page, "problem")
    link = page.locator(".problems .tag").first
    assert link.inner_text() in case["error_rules"]
    assert link.get_attribute("href") == f"../spec/endor-1/#{link.inner_text()}"


def test_names_are_text(page: Any, tmp_path: Path) -> None:
    name = '<img src=x onerror="document.title=1">\u202e\x1b[31m'
    header = {
        "__metadata__": {"<b>": "<script>document.title = 2</script>"},
        name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "__proto__": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
    }
    path = tmp_path / "names.safetensors"
    path.write_bytes(raw_file(header, b"ab"))
    choose(page, path)
    wait(page, "measured")
    assert page.locator("#report img, #report script").count() == 0
    assert "names.safetensors" in page.title()
    shown = {name.replace("\u202e", "\\u202e").replace("\x1b", "\\u001b"), "__proto__"}
    assert rows(page).keys() == shown


def test_a_large_file_opens_at_once(page: Any, tmp_path: Path) -> None:
    """5 GB of bitmap, 40 billion elements, and 64 bytes past all of them; nearly nothing of it on disk."""
    side = 200_000
    numel, bitmap = side * side, side * side // 8
    index = -(-(numel // 4096 + 2) // 8) * 8
    endor = {"dtype": "BF16", "nnz": 0, "positions": "bitmap", "shape": [side, side], "values": "raw"}
    end = bitmap + 8 * index
    header = {
        "__metadata__": {"endor": json.dumps({"version": "1.0", "tensors": {"layers.0.w": endor}})},
        "layers.0.w": {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]},
        "layers.0.w.endor.bitmap": {"dtype": "U8", "shape": [bitmap], "data_offsets": [0, bitmap]},
        "layers.0.w.endor.index": {"dtype": "I64", "shape": [index], "data_offsets": [bitmap, end]},
        "last": {"dtype": "U8", "shape": [8, 8], "data_offsets": [end, end + 64]},
    }
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(raw_file(header))
        file.seek(end, os.SEEK_CUR)
        file.write(bytes(range(64)))
    choose(page, path)
    wait(page, "measured", timeout=10)
    shown = facts(page)
    assert shown["Size"] == "5.08 GB"
    assert shown["Elements"] == f"{numel + 64:,}"
    assert re.fullmatch(r"\d+ B|[\d.]+ kB", shown["Read so far"]), shown  # less than a megabyte
    sheet(page, "layers.0.w")
    page.locator("#bitmap-where", has_text="columns 0 to 199,999").wait_for()
    page.click("dialog >> text=Close")
    page.wait_for_timeout(100)
    sheet(page, "last")
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3)
    page.locator("dialog .value", has_text="[4, 4] = 36  (0x24)").wait_for()
    page.click("dialog >> text=Close")
    page.click("text=Check every byte")
    page.click("text=Stop")
    wait(page, "Stopped.")


def test_a_checkpoint_is_held_to_its_rules(page: Any) -> None:
    folder = CORPUS / "cases" / "directory"
    choose(page, *sorted((folder / "k-3-two-shards").iterdir()))
    page.locator("#report h2", has_text="Checkpoint of 2 files").wait_for()
    wait(page, "measured")
    assert page.locator(".problems:visible").count() == 0
    choose(page, *sorted((folder / "k-4-extra-part-in-the-other-shard").iterdir()))
    page.locator(".problems .tag", has_text="K-4").wait_for()
    assert len(rows(page)) > 1  # and yet each shard is shown


def test_a_folder_and_not_those_in_it(page: Any, sharded: Path) -> None:
    page.set_input_files("#folder", str(sharded))
    wait(page, "measured")
    assert facts(page)["Tensors"] == str(len(rows(page)))
    assert "x" not in rows(page)
    files = page.locator("details.more-facts li bdi").all_text_contents()
    assert set(files) == {path.name for path in sharded.glob("*.safetensors")}


def test_a_header_that_would_stop_the_page(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    path.write_bytes(raw_file(b"{}" + b" " * 25_000_000))
    choose(page, path)
    page.locator(".problems", has_text="unsupported").wait_for()
    assert "25000002 bytes" in page.inner_text(".problems")


def test_shards_of_a_dense_checkpoint(page: Any, sharded: Path) -> None:
    choose(page, *sorted(sharded.glob("model*")))
    wait(page, "measured")
    assert page.locator(".problems:visible").count() == 0
    assert page.locator("figure.picture").count() == 1


def test_nothing_leaves_the_page(page: Any, compressed: Path) -> None:
    """The browser is told to let nothing out, and does."""
    page.context.set_offline(True)
    (file,) = compressed.glob("*.safetensors")
    choose(page, file)
    wait(page, "measured")
    policy = page.get_attribute("meta[http-equiv]", "content")
    assert policy.startswith("default-src 'none';")
    assert "connect-src" not in policy


@pytest.fixture
def loose(browser: Any) -> Iterator[Any]:
    """A page that is not opened from a server."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


def test_in_one_file_from_disk(loose: Any, tmp_path: Path, compressed: Path) -> None:
    out = tmp_path / "inspector.html"
    subprocess.run(
        [sys.executable, INSPECTOR / "standalone.py", out, "--specification", "https://e.org/s/"], check=True
    )
    faults: list[str] = []
    loose.on("pageerror", lambda error: faults.append(str(error)))
    loose.on("console", lambda text: faults.append(text.text) if text.type == "error" else None)
    loose.goto(out.as_uri())
    (file,) = compressed.glob("*.safetensors")
    choose(loose, file)
    wait(loose, "measured")
    choose(loose, CORPUS / "cases" / "malformed" / "j-2-tensor-twice.safetensors")
    loose.locator(".problems .tag", has_text="J-2").wait_for()
    assert loose.get_attribute(".problems .tag", "href") == "https://e.org/s/#J-2"
    assert not faults


def test_modules_from_disk_say_why_they_do_not_run(loose: Any) -> None:
    loose.goto((INSPECTOR / "index.html").as_uri())
    assert loose.locator("#blocked").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_hard_to_perceive(page: Any, compressed: Path, scheme: str) -> None:
    """What axe finds, in all states of the page: names, roles, contrast."""

    def check(state: str) -> None:
        page.evaluate("() => Promise.all(document.getAnimations().map(one => one.finished))")
        assert barriers(page) == [], state

    page.emulate_media(color_scheme=scheme)
    check("empty")
    (file,) = compressed.glob("*.safetensors")
    choose(page, file)
    wait(page, "measured")
    check("a model")
    page.locator(".tensor").first.click()
    page.locator("#bitmap-where", has_text="rows").wait_for()
    check("a tensor")
    page.click("dialog >> text=Close")
    choose(page, next((CORPUS / "cases" / "unsupported").glob("m-7*")))
    page.locator(".problems .tag").first.wait_for()
    check("something unsupported")
    choose(page, CORPUS / "cases" / "malformed" / "j-2-tensor-twice.safetensors")
    page.locator(".problems .tag", has_text="J-2").wait_for()
    check("a problem")


@pytest.mark.parametrize("width", [320, 1200])
def test_no_width_is_too_small(page: Any, compressed: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    (file,) = compressed.glob("*.safetensors")
    choose(page, file)
    wait(page, "measured")

    def over(selector: str) -> bool:
        return bool(
            page.evaluate(
                "s => { const e = document.querySelector(s); return e.scrollWidth > e.clientWidth; }",
                selector,
            )
        )

    assert not over("html")
    page.locator(".tensor").first.click()
    page.locator("#bitmap-where", has_text="rows").wait_for()
    assert not over("html")
    assert not over("dialog")
