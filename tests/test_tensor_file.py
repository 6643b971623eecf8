"""`to_bytes` and `read_tensor_file`: safetensors files are checked before tensors are created."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recurra.errors import RunError
from recurra.io.tensors import MAX_HEADER_BYTES, TensorSpec, read_tensor_file, to_bytes

TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "scalar": torch.tensor(0.5),
}
EXPECTED = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in TENSORS.items()}
RECORD = {"step": 3, "text": "猫"}
Header = dict[str, Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_bytes(TENSORS, RECORD))
    return path


def read(file: Path) -> dict[str, Any]:
    tensors, record = read_tensor_file(file, EXPECTED)
    assert record == RECORD
    return tensors


def split(data: bytes) -> tuple[Header, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def join(header: bytes | Header, body: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def test_read_tensor_file_round_trips(file: Path) -> None:
    tensors = read(file)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_to_bytes_is_readable_by_safetensors(file: Path) -> None:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        assert torch.equal(opened.get_tensor("matrix"), TENSORS["matrix"])
        assert json.loads(opened.metadata()["record"]) == RECORD


def test_to_bytes_is_equal_in_every_process(file: Path) -> None:
    program = (
        "import sys, torch\n"
        "from recurra.io.tensors import to_bytes\n"
        "tensors = {'scalar': torch.tensor(0.5),\n"
        "    'bytes': torch.tensor([1, 2, 3], dtype=torch.uint8),\n"
        "    'matrix': torch.arange(6, dtype=torch.float32).reshape(2, 3)}\n"
        "sys.stdout.buffer.write(to_bytes(tensors, {'step': 3, 'text': '猫'}))\n"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        assert done.stdout == file.read_bytes()


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_read_tensor_file_header_length_like_pickle_is_valid(file: Path, length: int) -> None:
    data = file.read_bytes()
    record = RECORD | {"padding": "x" * (length - int.from_bytes(data[:8], "little") - 20)}
    file.write_bytes(to_bytes(TENSORS, record))
    assert file.read_bytes()[:2] == length.to_bytes(2, "little")
    assert read_tensor_file(file, EXPECTED)[1] == record


def test_read_tensor_file_optional_tensor_can_be_missing(file: Path) -> None:
    expected = EXPECTED | {"more": TensorSpec(torch.float32, (2,))}
    with pytest.raises(RunError, match="tensor 'more' is missing"):
        read_tensor_file(file, expected)
    tensors, _ = read_tensor_file(file, expected, optional={"more"})
    assert "more" not in tensors


def change_entry(name: str, **fields: Any) -> Callable[[Header], Header]:
    return lambda header: header | {name: header[name] | fields}


# The file stores floats before bytes: matrix at 0 to 24, scalar at 24 to 28, bytes at 28 to 31.
WRONG_HEADERS: dict[str, tuple[Callable[[Header], Header], str]] = {
    "missing": (lambda h: {k: v for k, v in h.items() if k != "scalar"}, "'scalar' is missing"),
    "renamed": (
        lambda h: {("other" if k == "scalar" else k): v for k, v in h.items()},
        "'other'",
    ),
    "dtype": (change_entry("matrix", dtype="F16"), "dtype of tensor 'matrix' is 'F16'.*'F32'"),
    "dtype number": (change_entry("matrix", dtype=3), "dtype of tensor 'matrix' is 3"),
    "shape": (change_entry("matrix", shape=[3, 2]), r"shape of .* is \[3, 2\].*\[2, 3\]"),
    "shape of true": (change_entry("matrix", shape=[2.0, 3]), "shape of tensor 'matrix'"),
    "shape product": (change_entry("matrix", shape=[2**33, 2**33]), "shape of tensor 'matrix'"),
    "shape deep": (change_entry("matrix", shape=[[[2]], 3]), "shape of tensor 'matrix'"),
    "negative shape": (change_entry("matrix", shape=[-2, -3]), "shape of tensor 'matrix'"),
    "overlap": (change_entry("scalar", data_offsets=[20, 24]), "data_offsets of tensor 'scalar'"),
    "hole": (change_entry("scalar", data_offsets=[25, 29]), "data_offsets of tensor 'scalar'"),
    "reversed": (change_entry("scalar", data_offsets=[28, 24]), "data_offsets of tensor 'scalar'"),
    "all at 0": (change_entry("bytes", data_offsets=[0, 3]), "data_offsets of tensor"),
    "beyond": (change_entry("bytes", data_offsets=[28, 2**62]), "data_offsets of tensor 'bytes'"),
    "negative": (change_entry("bytes", data_offsets=[-3, 0]), "data_offsets of tensor"),
    "no offsets": (change_entry("bytes", data_offsets=None), "data_offsets of tensor 'bytes'"),
    "true as 1": (change_entry("matrix", data_offsets=[False, 24]), "data_offsets of .*'matrix'"),
    "more fields": (change_entry("bytes", extra=1), "'bytes'"),
    "not an entry": (lambda h: h | {"bytes": 7}, "dtype of tensor 'bytes' is None"),
    "record": (lambda h: h | {"__metadata__": {"record": "[]"}}, "JSON object"),
    "record number": (lambda h: h | {"__metadata__": {"record": 3}}, "__metadata__"),
    "metadata": (lambda h: h | {"__metadata__": {"record": "{}", "x": [3]}}, "__metadata__"),
    "metadata list": (lambda h: h | {"__metadata__": [1]}, "__metadata__"),
}


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_read_tensor_file_wrong_header_error_names_field(file: Path, name: str) -> None:
    edit, message = WRONG_HEADERS[name]
    header, body = split(file.read_bytes())
    file.write_bytes(join(edit(header), body))
    with pytest.raises(RunError, match=f"{file.name} .*{message}"):
        read(file)


MALFORMED_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", " 0 bytes"),
    "seven bytes": (lambda data: data[:7], " 7 bytes"),
    "header of 2**63": (lambda data: (2**63).to_bytes(8, "little") + data[8:], "9,223,"),
    "header of 2**64 - 1": (lambda data: b"\xff" * 8 + data[8:], "18,446,"),
    "header too long": (
        lambda data: (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + data[8:],
        "4,194,304",
    ),
    "header beyond the end": (
        lambda data: len(data).to_bytes(8, "little") + data[8:],
        "header",
    ),
    "no header": (lambda data: bytes(8) + data[8:], "is damaged"),
    "a byte too many": (lambda data: data + b"\0", " bytes"),
    "a byte too few": (lambda data: data[:-1], " bytes"),
    "not JSON": (lambda data: join(b"x" * 9, data), "is damaged"),
    "a list": (lambda data: join(b"[]", data), "JSON object"),
    "not UTF-8": (lambda data: join(b'{"\xff": 1}', data), "is damaged"),
    "twice the same key": (
        lambda data: join(b'{"matrix": 1, "matrix": 2}', b""),
        "'matrix'",
    ),
    "deep": (lambda data: join(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b""), "too deeply"),
    "100 deep": (lambda data: join(b'{"a":' * 100 + b"1" + b"}" * 100, b""), "too deeply"),
    "NaN in JSON": (lambda data: join(b'{"a": NaN}', b""), "NaN"),
    "a long number": (lambda data: join(b'{"a": ' + b"9" * 5000 + b"}", b""), "is too large"),
    "1e999": (lambda data: join(b'{"a": 1e999}', b""), "is too large"),
    "zip": (lambda data: b"PK\x03\x04" + data, "pickle"),
    "pickle": (lambda data: b"\x80\x02}q\0X" + data, "pickle"),
}


@pytest.mark.parametrize("name", MALFORMED_FILES)
def test_read_tensor_file_malformed_file_raises(file: Path, name: str) -> None:
    change, message = MALFORMED_FILES[name]
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(RunError, match=f"{file.name} .*{message}"):
        read(file)


def test_read_tensor_file_60000_unexpected_tensors_raise(file: Path) -> None:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [31, 31]}
    header, body = split(file.read_bytes())
    file.write_bytes(join(header | {str(i): entry for i in range(60_000)}, body))
    with pytest.raises(RunError, match=r" tensor '| values "):
        read(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["matrix", "scalar"])
def test_read_tensor_file_non_finite_error_names_tensor(
    file: Path, name: str, value: float
) -> None:
    tensors = TENSORS | {name: TENSORS[name].clone()}
    tensors[name].view(-1)[-1] = value
    file.write_bytes(to_bytes(tensors, RECORD))
    with pytest.raises(RunError, match=f"'{name}' .*finite"):
        read(file)


def test_read_tensor_file_any_truncation_raises(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(RunError, match=file.name):
            read(file)


def test_read_tensor_file_bit_flip_raises_or_changes_value(file: Path) -> None:
    whole = file.read_bytes()
    start = len(whole) - len(split(whole)[1])
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            file.write_bytes(damaged)
            with contextlib.suppress(RunError):
                tensors, _ = read_tensor_file(file, EXPECTED)
                # A flip in the header can change the version or the record, but no tensor.
                equal = all(bits(tensors[name]) == bits(TENSORS[name]) for name in TENSORS)
                assert equal == (position < start), (position, bit)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def test_read_tensor_file_changed_while_reading_raises(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recurra.io import tensors as tensor_file

    check = tensor_file._check_entries

    def check_then_change(*arguments: Any) -> int:
        size = check(*arguments)
        data = file.read_bytes()
        with file.open("r+b") as stream:
            stream.write(data.replace(b"F32", b"I32"))
        return size

    # The header is larger than the stream's buffer, so it is read again from the file.
    record = RECORD | {"padding": "x" * 20_000}
    file.write_bytes(to_bytes(TENSORS, record))
    monkeypatch.setattr(tensor_file, "_check_entries", check_then_change)
    with pytest.raises(RunError, match="changed while"):
        read(file)
