"""The way to a device: every bit arrives, and no buffer is written to before it was copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.stream.transport import SLOTS, Transport

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    ),
]
DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16"]


def gathered(seed: int, rows: int = 37) -> dict[str, np.ndarray]:
    """Arrays of all dtypes, of odd sizes, most of them with gaps between their rows."""
    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for dtype in DTYPES:
        wide = random.integers(0, 2, (5, rows, 7)).astype(dtype)
        found[dtype] = wide[..., 1:4]
        found[f"{dtype} alone"] = wide[..., 2]
    found["none"] = np.zeros((5, rows, 0, 3), np.float32)
    found["ids"] = np.array([["a"] * rows] * 5, object)
    return found


def assert_arrived(came: dict[str, Any], sent: dict[str, np.ndarray]) -> None:
    assert came.keys() == sent.keys()
    assert came["ids"] is sent["ids"]
    for name in sent.keys() - {"ids"}:
        array = came[name].cpu().numpy()
        assert (array.dtype, array.shape) == (sent[name].dtype, sent[name].shape)
        assert array.tobytes() == sent[name].tobytes(), name


@pytest.mark.parametrize("device", DEVICES)
def test_every_bit_arrives_and_stays(device: str) -> None:
    transport = Transport(torch.empty(0, device=device).device)
    sizes = [37, 1, 400, 5, 400, 37, 37, 37, 0, 9]
    sent = [gathered(seed, rows) for seed, rows in enumerate(sizes)]
    assert len(sent) > 2 * SLOTS, "buffers are used again while tensors of before are held"
    on_their_way = [transport.send(one) for one in sent]
    came = [transport.receive(one) for one in on_their_way]
    for one, other in zip(came, sent, strict=True):
        assert_arrived(one, other)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_received_is_writable_and_of_nobody_else(device: str) -> None:
    transport = Transport(torch.empty(0, device=device).device)
    sent = gathered(0)
    first, second = (transport.receive(transport.send(sent)) for _ in range(2))
    first["f4"].fill_(9)
    assert_arrived(second, sent)
    assert_arrived({**first, "f4": second["f4"]}, sent)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_busy_device_reads_what_was_sent() -> None:
    """The learner's stream is far behind, so memory that came too early into use would show."""
    device = torch.empty(0, device="cuda").device
    transport = Transport(device)
    matrix = torch.randn(2048, 2048, device=device)
    sums = []
    for step in range(60):
        sent = {"x": np.full((64, 1024, 16), step, np.float32)}
        came = transport.receive(transport.send(sent))["x"]
        for _ in range(4):
            matrix = torch.tanh(matrix @ matrix)
        sums.append(came.mean() + 0 * matrix.sum())
        del came
    assert torch.stack(sums).round().tolist() == list(range(60))
