"""Pictures of the example workflows: one for each, small, current, and drawn from the graph."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

import example_pictures
from example_pictures import difference

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / example_pictures.FOLDER
FILES = sorted(FOLDER.glob("*.json"))
NAMES = [file.stem for file in FILES]
SIMPLE = "flux dev - 8 GB moved to the cpu"


def saved_of(name: str) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return saved


def opened(picture: bytes | Path) -> Image.Image:
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        return image.convert("RGB")


def pixels_near(image: Image.Image, colour: str) -> int:
    """How many pixels have a colour, but for what the JPEG did to it."""
    flat = ImageChops.difference(image, Image.new("RGB", image.size, colour)).convert("L")
    return sum(flat.histogram()[:12])


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_the_host_finds_a_picture_beside_a_workflow(file: Path) -> None:
    picture = file.with_suffix(".jpg")
    assert picture.stat().st_size <= example_pictures.LARGEST
    assert difference(opened(picture), opened(example_pictures.picture(saved_of(file.stem)))) < 6


def test_no_two_pictures_are_the_same() -> None:
    pictures = [opened(file.with_suffix(".jpg")) for file in FILES]
    for index, one in enumerate(pictures):
        assert all(difference(one, other) > 0 for other in pictures[:index]), FILES[index].stem


def test_drawing_twice_gives_the_same_bytes() -> None:
    saved = saved_of(SIMPLE)
    assert example_pictures.picture(saved) == example_pictures.picture(copy.deepcopy(saved))


def test_a_picture_with_less_in_it_is_sharper() -> None:
    def quantisation(name: str) -> list[int]:
        with Image.open(io.BytesIO(example_pictures.picture(saved_of(name)))) as image:
            return list(image.quantization[0])  # type: ignore[attr-defined]

    assert sum(quantisation("which devices are seen")) < sum(quantisation("wan 2.2 - two models over two cards"))


def test_a_link_is_drawn() -> None:
    saved = saved_of(SIMPLE)
    without = {**saved, "links": [link for link in saved["links"] if link[5] != "MODEL"]}
    one, other = (opened(example_pictures.picture(each)) for each in (saved, without))
    assert difference(one, other) > 0.2


def test_boxes_stay_in_the_picture_and_apart() -> None:
    width, height = (side * example_pictures._FINE for side in example_pictures.SIZE)
    for name in NAMES:
        nodes = {each["id"]: each for each in saved_of(name)["nodes"] if each["type"] != "MarkdownNote"}
        boxes = list(example_pictures._boxes(nodes, top=100.0).values())
        for index, (left, top, right, bottom) in enumerate(boxes):
            assert 0 <= left < right <= width
            assert 100 <= top < bottom <= height
            for other in boxes[:index]:
                assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, name


def test_a_long_note_ends_with_dots_and_leaves_room() -> None:
    saved = saved_of(SIMPLE)
    note = next(each for each in saved["nodes"] if each["type"] == "MarkdownNote")
    images = []
    for more in ("", "and so on ", "and so on " * 50):
        note["widgets_values"] = ["Words " * 60 + more]
        images.append(opened(example_pictures.picture(saved)))
    assert difference(images[0], images[1]) == difference(images[0], images[2]) == 0


def test_a_type_is_broken_where_its_words_are() -> None:
    assert example_pictures.words("EmptySD3LatentImage") == ["Empty", "SD3", "Latent", "Image"]
    assert example_pictures.words("KSamplerAdvanced") == ["KSampler", "Advanced"]
    for file in FILES:
        for each in json.loads(file.read_text(encoding="utf-8"))["nodes"]:
            assert "".join(example_pictures.words(each["type"])) == each["type"]


def test_a_picture_that_grew_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = saved_of(SIMPLE)
    file = tmp_path / "x.jpg"
    file.write_bytes(example_pictures.picture(saved))
    monkeypatch.setattr(example_pictures, "LARGEST", 4000)
    assert not example_pictures.is_current(file, saved)
    with pytest.raises(ValueError, match=r"the picture has \d+ bytes, more than 4000"):
        example_pictures.picture(saved)


def test_nodes_stand_apart_in_the_editor() -> None:
    """With room for the title, 30 units high, which the editor draws above a node's place."""
    for name in NAMES:
        nodes = saved_of(name)["nodes"]
        boxes = [(*each["pos"], each["pos"][0] + each["size"][0], each["pos"][1] + each["size"][1]) for each in nodes]
        for index, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[:index]:
                apart = right < other[0] or other[2] < left or bottom < other[1] - 30 or other[3] < top - 30
                assert apart, f"{name}: {nodes[index]['type']}"


def test_our_nodes_are_in_their_colour() -> None:
    def drawn(kind: str) -> Image.Image:
        note = {"id": 1, "type": "MarkdownNote", "widgets_values": ["One node."]}
        node = {"id": 2, "type": kind, "pos": [0, 0], "size": [420, 90], "inputs": []}
        return opened(example_pictures.picture({"nodes": [note, node], "links": []}))

    tint = example_pictures._OURS[1]
    assert pixels_near(drawn("TorchspanDoctor"), tint) > 2000
    assert pixels_near(drawn("EmptyLatentImage"), tint) == 0


def test_only_a_picture_that_shows_the_graph_is_current(tmp_path: Path) -> None:
    saved, other = saved_of(SIMPLE), saved_of("which devices are seen")
    file = tmp_path / "x.jpg"
    assert not example_pictures.is_current(file, saved)
    file.write_bytes(example_pictures.picture(saved))
    assert example_pictures.is_current(file, saved)
    assert not example_pictures.is_current(file, other)
    with Image.open(file) as image:
        image.resize((200, 150)).save(file)
    assert not example_pictures.is_current(file, saved)
    file.write_bytes(b"no picture")
    assert not example_pictures.is_current(file, saved)


def test_a_picture_that_is_missing_or_has_no_workflow_is_found_and_put_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / example_pictures.FOLDER
    folder.mkdir()
    (folder / "x.json").write_text(json.dumps(saved_of(SIMPLE)), encoding="utf-8")
    (folder / "gone.jpg").write_bytes(b"of no workflow")
    command = ["--root", str(tmp_path)]
    assert example_pictures.main([*command, "--check"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert example_pictures.main(command) == 0
    assert example_pictures.main([*command, "--check"]) == 0
    assert {path.name for path in folder.iterdir()} == {"x.json", "x.jpg"}
