"""Encoded rows for tests: real pictures and clips, and episodes that hold every encoding."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from hypothesis import strategies as st

from schemas.episode import Episode
from schemas.packed import Media, Packed, Rows, Video
from schemas.spec import FieldSpec

HEIGHT, WIDTH, FPS, CLIP_FRAMES = 16, 24, 10, 12
PICTURE = FieldSpec("|u1", (HEIGHT, WIDTH, 3), "frames")
FILM = FieldSpec("|u1", (HEIGHT, WIDTH, 3), "video")


@functools.cache
def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    """One encoded picture."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def pictures(rows: int, seed: int = 0, kind: str = "JPEG") -> Packed:
    """Some rows of pictures."""
    return Packed.of(PICTURE, [picture(seed * 1000 + row % 50, kind) for row in range(rows)])


@functools.cache
def clip(seed: int = 0) -> bytes:
    """A small MPEG-4 file whose frames differ in brightness."""
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(CLIP_FRAMES):
            shade = (20 * number + 7 * seed) % 256
            pixels = np.full((HEIGHT, WIDTH, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


def film(rows: int, *clips: int, start: int = 0) -> Video:
    """Some rows of video, dealt out to clips in turn."""
    index = np.arange(rows, dtype=np.int32) * len(clips) // max(rows, 1)
    times = ((np.arange(rows) + start) % CLIP_FRAMES) / FPS
    media = tuple(Media.of(clip(seed)) for seed in clips)
    return Video(FILM, media, index.astype(np.int32), times)


def words(rows: int, say: str = "grüße 🙂") -> Packed:
    """Some rows of text, empty ones among them."""
    return Packed.texts([f"{say} {row}" * (row % 3) for row in range(rows)])


def points(rows: int, seed: int = 0) -> Packed:
    """Some rows of point clouds, (n, 3) float32 each."""
    rng = np.random.default_rng(seed)
    return Packed.ragged([rng.normal(size=(n % 4, 3)).astype(np.float32) for n in range(rows)])


def camera_episode(name: str, steps: int = 5, seed: int = 0, **changes: Any) -> Episode:
    """An episode with a field of every encoding."""
    told: dict[str, Any] = {
        "observations": {
            "state": np.random.default_rng(seed).normal(size=(steps + 1, 3)),
            "front": pictures(steps + 1, seed),
            "wrist": film(steps + 1, seed),
            "scan": points(steps + 1, seed),
        },
        "actions": np.full((steps, 2), float(seed), np.float32),
        "rewards": np.arange(steps, dtype=np.float32),
        "terminated": True,
        "extras": {"instruction": words(steps), "thought": words(steps + 1)},
    }
    return Episode(name, **{**told, **changes})


@st.composite
def encoded_rows(draw: st.DrawFn, rows: int) -> Rows:
    """Rows of any encoding; padding, empty rows and several media files among them."""
    kind = draw(st.sampled_from(("frames", "video", "text", "ragged")))
    if kind == "text":
        texts = st.text(st.characters(codec="utf-8"), max_size=5)
        return Packed.texts(draw(st.lists(texts, min_size=rows, max_size=rows)))
    numbers = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    if kind == "frames":
        form = draw(st.sampled_from(("PNG", "JPEG")))
        return Packed.of(PICTURE, [picture(n, form) if n else b"" for n in numbers])
    if kind == "ragged":
        spec = FieldSpec(draw(st.sampled_from(("<f4", "|u1", "|b1"))), (-1, 2), "ragged")
        return Packed.of(spec, [bytes(n * spec.row_bytes) for n in numbers])
    index = np.array(numbers, np.int32) - 1
    times = np.where(index < 0, np.nan, np.arange(rows) % CLIP_FRAMES / FPS)
    return Video(FILM, tuple(Media.of(clip(seed)) for seed in (2, 1, 3)), index, times)[:]


@st.composite
def encoded_episodes(draw: st.DrawFn) -> Episode:
    """Episodes of 0 to 5 steps with raw and encoded fields."""
    steps = draw(st.integers(0, 5))
    final = draw(st.sampled_from(("present", "missing", "copied")))
    rows = steps + (final != "missing")
    names = st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True)
    observations = {name: draw(encoded_rows(rows)) for name in draw(names)}
    extras = {n: draw(encoded_rows(steps + draw(st.integers(0, 1)))) for n in draw(names)}
    return Episode(
        draw(st.text("abc", min_size=1, max_size=3)),
        {"state": np.arange(rows * 2.0).reshape(rows, 2), **observations},
        actions=np.ones((steps, 1), np.float32),
        final_observation=final,
        extras=extras,
    )
