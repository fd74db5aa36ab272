"""Files that are something else, that lie about their size, or that change while they are used."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import gguf_bytes as raw
import pytest
from gguf_bytes import ARRAY, STRING, U8, U32, File, Tensor, array, pair, string
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_loader import (
    GgufError,
    GgufFormatError,
    GgufHeader,
    GgufKeyError,
    get_gguf_metadata,
    gguf_sd_loader,
    load_gguf,
    load_text_encoder,
    open_gguf,
    read_header,
)
from gguf_loader._errors import quoted

Opener: TypeAlias = Callable[[Path], object]
OPENERS: tuple[Opener, ...] = (
    read_header,
    open_gguf,
    load_gguf,
    load_text_encoder,
    get_gguf_metadata,
)
LINE = 400


def says(path: Path, opener: Opener = read_header) -> str:
    """The whole message of a refusal, which names the file once."""
    with pytest.raises(GgufError) as caught:
        opener(path)
    error, text = caught.value, str(caught.value)
    assert text == f"{path}: {error.detail}; {error.remedy}"
    assert text.count(path.name) == 1
    return text.removeprefix(f"{path}: ")


class TestRegularFiles:
    @pytest.mark.parametrize("opener", OPENERS)
    @pytest.mark.timeout(60)
    def test_pipes_folders_sockets_and_devices_are_refused_at_once(
        self, tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipe, folder = tmp_path / "pipe.gguf", tmp_path / "folder.gguf"
        os.mkfifo(pipe)
        folder.mkdir()
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket.gguf")
            found = [says(path, opener) for path in (pipe, folder, tmp_path / "socket.gguf", Path("/dev/zero"))]
        kinds = ("a named pipe", "a folder", "a socket", "a device")
        assert found == [f"{kind}, not a regular file; choose a GGUF file" for kind in kinds]

    def test_a_pipe_put_in_place_of_the_file_is_refused_by_its_arrays(self, tmp_path: Path) -> None:
        path = raw.rich().write(tmp_path / "rich.gguf")
        values = read_header(path).metadata.array("many.4")
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(GgufFormatError, match="a named pipe, not a regular file"):
            values.numpy()

    def test_no_descriptor_is_left_open_by_a_refusal(self, tmp_path: Path) -> None:
        (tmp_path / "bad.gguf").write_bytes(b"GGML")
        before = sum(1 for _ in Path("/proc/self/fd").iterdir())
        for _ in range(20):
            for opener in OPENERS:
                for name in ("bad.gguf", "."):
                    with pytest.raises(GgufError):
                        opener(tmp_path / name)
        assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


class TestChangedFiles:
    def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(self, tmp_path: Path) -> None:
        path = raw.rich().write(tmp_path / "rich.gguf")
        header = read_header(path)
        twin = raw.rich().write(tmp_path / "twin.gguf")
        os.utime(twin, ns=(header.stamp.mtime_ns, header.stamp.mtime_ns))
        twin.replace(path)
        with pytest.raises(GgufFormatError, match="changed after its header was read; read the header again"):
            header.metadata.array("many.4").numpy()

    def test_a_tensor_that_was_cut_off_is_refused_when_it_is_made(self, tmp_path: Path) -> None:
        path = raw.rich().write(tmp_path / "rich.gguf")
        file = open_gguf(path)
        first, last = "norm", "scalar"
        os.truncate(path, file.header.data_offset_bytes + 64)
        assert file.native_tensor(first).tolist() == [1, 2, 3, 4]
        for make in (file.native_tensor, file.tensor_bytes):
            with pytest.raises(GgufFormatError, match=r"tensor 'scalar': the file was cut to \d+ bytes after it was"):
                make(last)

    def test_a_file_cut_while_it_is_mapped_ends_the_process_as_documented(self, tmp_path: Path) -> None:
        """What `GgufFile` promises not to survive; if a platform did better, the sentence there could go."""
        path = raw.File(tensors=[Tensor("big", (1 << 20,), raw.F32, bytes(4 << 20))]).write(tmp_path / "big.gguf")
        script = (
            "import os, sys, gguf_loader\n"
            "tensor = gguf_loader.load_gguf(sys.argv[1]).state_dict['big']\n"
            "os.truncate(sys.argv[1], 4096)\n"
            "print(float(tensor.sum()))\n"
        )
        run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, timeout=100, check=False)
        assert run.returncode == -7
        assert "SIGBUS" in (open_gguf.__doc__ or "") + (type(open_gguf(raw.rich().write(path))).__doc__ or "")


class TestCaps:
    def test_counts_above_the_caps_are_refused_before_a_record_is_read(self, tmp_path: Path) -> None:
        """A file large enough that the counts are possible: it is sparse, so it costs no disk."""
        path = tmp_path / "large.gguf"
        for tensors, pairs, unit in ((1 << 20, 0, "tensors"), (0, 1 << 20, "metadata pairs")):
            path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs))
            os.truncate(path, 99 << 20)
            assert f"1048576 {unit}, where at most 262144 are possible" in says(path)

    @pytest.mark.timeout(60)
    def test_a_header_of_99_mib_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "long.gguf"
        length = 99 << 20
        texts = [pair(f"k{index}", STRING, "") for index in range(7)]
        for payload in (
            struct.pack("<IQ", U8, length) + bytes(8),
            struct.pack("<IQ", STRING, 4 << 20) + struct.pack("<Q", 100) * 64,
        ):
            head = File(pairs=[*texts, string("values") + struct.pack("<I", ARRAY) + payload]).bytes()
            path.write_bytes(head)
            os.truncate(path, len(head) + length)
            assert "possible" in says(path) or "the header is longer than 64 MiB" in says(path)
        big = [pair(f"k{index}", STRING, "x" * (16 << 20)) for index in range(5)]
        path.write_bytes(File(pairs=big).bytes())
        assert says(path).startswith("metadata 'k3' at byte ")
        assert "the header is longer than 64 MiB; " in says(path)

    @pytest.mark.timeout(120)
    def test_a_hundred_thousand_tensors_open(self, tmp_path: Path) -> None:
        count = 100_000
        zeros = bytes(32)
        tensors = [Tensor(f"blocks.{index}.weight", (8,), raw.F32, zeros) for index in range(count)]
        shapes = [
            pair(f"comfy.gguf.orig_shape.blocks.{index}.weight", ARRAY, array(U32, [2, 4])) for index in range(99)
        ]
        state_dict = load_gguf(File(pairs=shapes, tensors=tensors).write(tmp_path / "many.gguf")).state_dict
        assert len(state_dict) == count
        assert state_dict["blocks.98.weight"].shape == (2, 4)
        assert state_dict["blocks.99.weight"].shape == (8,)

    def test_the_last_of_many_tensors_is_named_without_looking_through_all(self, tmp_path: Path) -> None:
        tensors = [Tensor(f"t{index}") for index in range(5000)]
        tensors[-1].offset = 1 << 40
        assert "tensor 't4999' offset" in says(File(tensors=tensors).write(tmp_path / "far.gguf"))

    @given(
        text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
        place=st.sampled_from(["key", "twice", "value type", "architecture", "name", "adapter"]),
    )
    @settings(max_examples=40, deadline=None)
    def test_no_message_quotes_more_than_a_line(
        self, tmp_path_factory: pytest.TempPathFactory, text: str, place: str
    ) -> None:
        text = text * (60_000 // (4 * len(text)))
        name = text.encode()[:240].decode(errors="ignore")
        one = pair(text, U8, 1)
        files = {
            "key": File(pairs=[string(text) + struct.pack("<IB", raw.BOOL, 7)]),
            "twice": File(pairs=[one, one], tensors=[Tensor()]),
            "value type": File(pairs=[string(text) + struct.pack("<I", 99)]),
            "architecture": File(pairs=[pair("general.architecture", STRING, text)], tensors=[Tensor("blk.0.a")]),
            "name": File(tensors=[Tensor(name), Tensor(name)]),
            "adapter": File(pairs=[pair("general.type", STRING, "adapter")], tensors=[Tensor(name)]),
        }
        path = files[place].write(tmp_path_factory.mktemp("quoted") / "f.gguf")
        with pytest.raises(GgufError) as caught:
            load_text_encoder(path)
        message = str(caught.value).removeprefix(f"{path}: ")
        assert len(message) < LINE
        assert "\n" not in message

    def test_a_short_text_is_quoted_whole(self) -> None:
        assert quoted("a'b\n") == repr("a'b\n")
        assert quoted(b"\xff" * 100, 4) == "b'\\xff\\xff... (100 characters)'"
        assert quoted(None) == "None"

    def test_a_long_name_given_by_the_caller_is_cut_too(self) -> None:
        assert len(str(GgufError("broken", field="layer" * 100_000))) < LINE


FOREIGN = [
    (b"", "an empty file"),
    (b"<!DOCTYPE html><html><title>Sign in</title>", "a web page"),
    (b"\n  <html lang='en'>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 6456610464\n", "a Git LFS pointer"),
    (struct.pack("<Q", 40) + b'{"a":{"dtype":"F32"}}', "a safetensors file"),
    (b"PK\3\4rest", "a PyTorch or zip file"),
    (b"tjgg\3\0\0\0", "a file of a format before GGUF"),
    (b'{"error": "gated"}', "a JSON text"),
    (bytes(4096), "a file that starts with zeros"),
]


KINDS = {
    "LoRA": (["blocks.0.qkv.weight.lora_a", "blocks.0.qkv.weight.lora_b"], None),
    "LoRA by type": (["blocks.0.qkv.weight"], "adapter"),
    "vision part": (["v.blk.0.attn_q.weight", "mm.0.weight"], "mmproj"),
    "vision part by name": (["v.patch_embd.weight"], None),
    "text encoder": (["token_embd.weight", "blk.0.attn_q.weight"], "model"),
    "text encoder without a table": (["enc.blk.0.attn_q.weight"], None),
    "text encoder of original names": (["model.layers.0.self_attn.q_proj.weight"], None),
    "diffusion model": (["double_blocks.0.img_attn.qkv.weight"], None),
    "diffusion model of one adapter": (["blocks.0.a", "blocks.0.b", "blocks.0.lora_a"], "model"),
}


class TestWhatTheFileIs:
    @pytest.mark.parametrize(("data", "what"), FOREIGN, ids=[what for _, what in FOREIGN])
    @pytest.mark.parametrize("opener", OPENERS)
    def test_other_formats_are_named(self, tmp_path: Path, data: bytes, what: str, opener: Opener) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        message = says(path, opener)
        assert message.startswith(f"magic at byte 0: {what}")
        assert "not a GGUF file; " in message
        assert "damaged" not in message

    def test_one_part_of_several_is_named_with_one_remedy(self, tmp_path: Path) -> None:
        parts = [pair("split.no", raw.U16, 1), pair("split.count", raw.U16, 3)]
        message = says(File(pairs=parts, tensors=[Tensor()]).write(tmp_path / "model-00002-of-00003.gguf"))
        assert "part 2 of 3 of a split checkpoint; merge the parts with llama-gguf-split --merge" in message

    @staticmethod
    def write(path: Path, names: list[str], kind: str | None) -> Path:
        pairs = [pair("general.architecture", STRING, "flux")]
        pairs += [] if kind is None else [pair("general.type", STRING, kind)]
        return File(pairs=pairs, tensors=[Tensor(name) for name in names]).write(path)

    @pytest.mark.parametrize("case", KINDS)
    def test_the_contents_are_told_by_names_and_type(self, tmp_path: Path, case: str) -> None:
        header = read_header(self.write(tmp_path / "f.gguf", *KINDS[case]))
        assert case.startswith(header.contents)

    @pytest.mark.parametrize("case", KINDS)
    def test_a_loader_refuses_what_it_cannot_use(self, tmp_path: Path, case: str) -> None:
        path = self.write(tmp_path / "f.gguf", *KINDS[case])
        contents = read_header(path).contents
        if contents != "diffusion model":
            message = says(path, gguf_sd_loader)
            assert message.startswith(f"a {contents}, not a diffusion model; choose ")
        if contents != "text encoder":
            message = says(path, load_text_encoder)
            assert message.startswith(f"a {contents}, not a text encoder; choose ")
            assert "general.architecture" not in message

    def test_a_caller_can_ask_for_several_kinds(self, tmp_path: Path) -> None:
        header: GgufHeader = read_header(self.write(tmp_path / "f.gguf", *KINDS["vision part"]))
        header.require("text encoder", "vision part")
        with pytest.raises(GgufKeyError, match="a vision part, not a LoRA; choose the text encoder that it belongs to"):
            header.require("LoRA", "diffusion model")


def test_a_header_is_read_by_many_threads_at_once(tmp_path: Path) -> None:
    path = raw.rich().write(tmp_path / "rich.gguf")
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(read_header(path).sizes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [read_header(path).sizes()] * 8
