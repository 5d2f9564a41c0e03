"""RLDS through TensorFlow Datasets: episodes in TFRecord, cut and shuffled by tf.data, one thread.

Arrays of whole episodes are sliced at once, as dlimp and Octo do. Order is that of a buffer of
100,000 transitions over episodes in random order, not uniform over all.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
import torch
from etils import epath
from stream_source import BATCH, CLIPS, FRAMES, SIDE, WINDOW, WINDOWS, arrays, episodes

VERSION = f"TFDS {tfds.__version__}, TensorFlow {tf.__version__}"
BUFFER, CUTS = 100_000, 4
NAMES = ("observation", "action", "reward", "next_observation", "is_terminal")
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


def prepare_numbers(place: Path) -> None:
    tfds.disable_progress_bar()
    builder(place, is_pictures=False).download_and_prepare()


def prepare_pictures(place: Path) -> None:
    tfds.disable_progress_bar()
    builder(place, is_pictures=True).download_and_prepare()


def l1(place: Path) -> Callable[[], Any]:
    """Episodes sliced into transitions, shuffle(100,000), prefetch(2)."""
    drawn = transitions(read(place, is_pictures=False).repeat())
    return lambda: tensors(next(drawn))


def l2(place: Path) -> Callable[[], Any]:
    """4 random windows of each episode that comes by, shuffle(2,000)."""

    def cut(episode: Any) -> Any:
        steps = episode["steps"]
        rows = starts(tf.shape(steps["reward"])[0] - 1, WINDOW)
        return tuple(tf.gather(steps[name], rows) for name in NAMES[:3])

    held = read(place, is_pictures=False).repeat().shuffle(100).map(cut).unbatch().shuffle(2_000)
    drawn = held.batch(WINDOWS).prefetch(2).as_numpy_iterator()
    return lambda: [torch.from_numpy(np.array(one)) for one in next(drawn)]


def l3(place: Path) -> Iterator[Any]:
    """One pass, shuffle(100,000)."""
    for drawn in transitions(read(place, is_pictures=False)):
        yield tensors(drawn)


def l4(place: Path) -> Callable[[], Any]:
    """4 random windows of each episode that comes by, PNG decoded after shuffle(2,000)."""

    def cut(episode: Any) -> Any:
        seen = episode["steps"]["observation"]
        return tf.gather(seen, starts(tf.shape(seen)[0] - 1, FRAMES))  # of steps, as all do

    def decode(pictures: Any) -> Any:
        one = tf.map_fn(lambda x: tf.io.decode_png(x, 3), pictures, fn_output_signature=tf.uint8)
        return tf.reshape(one, (FRAMES, SIDE, SIDE, 3))

    held = read(place, is_pictures=True).repeat().shuffle(50).map(cut).unbatch().shuffle(2_000)
    drawn = held.map(decode).batch(CLIPS).prefetch(2).as_numpy_iterator()
    return lambda: [torch.from_numpy(np.array(next(drawn)))]


def starts(length: Any, window: int) -> Any:
    first = tf.random.uniform([CUTS], 0, length - window + 1, dtype=tf.int32)
    return first[:, None] + tf.range(window)[None]


def transitions(held: Any) -> Iterator[Any]:
    def pairs(episode: Any) -> Any:
        steps = episode["steps"]
        return {
            **{name: steps[name][:-1] for name in NAMES[:3]},
            "next_observation": steps["observation"][1:],
            "is_terminal": steps["is_terminal"][1:],
        }

    flat = held.shuffle(1_000).map(pairs).flat_map(tf.data.Dataset.from_tensor_slices)
    shuffled: Iterator[Any] = flat.shuffle(BUFFER).batch(BATCH).prefetch(2).as_numpy_iterator()
    return shuffled


def tensors(drawn: Any) -> Any:
    return [torch.from_numpy(np.array(drawn[name])) for name in NAMES]


def read(place: Path, *, is_pictures: bool) -> Any:
    return builder(place, is_pictures=is_pictures).as_dataset(
        split="train",
        shuffle_files=True,
        read_config=tfds.ReadConfig(try_autocache=False, enable_ordering_guard=False),
        decoders={"steps": tfds.decode.SkipDecoding()},
    )


def builder(place: Path, *, is_pictures: bool) -> Any:
    """RLDS: one step more than an episode has, for its last observation."""
    seen = tfds.features.Tensor(shape=(11,), dtype=np.float32)
    if is_pictures:
        seen = tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png")
    step = {
        "observation": seen,
        "action": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        "reward": tfds.features.Scalar(np.float32),
        "is_first": tfds.features.Scalar(np.bool_),
        "is_last": tfds.features.Scalar(np.bool_),
        "is_terminal": tfds.features.Scalar(np.bool_),
    }

    class Bench(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
        name = "bench"
        pkg_dir_path = epath.Path(place)
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {"steps": tfds.features.Dataset(step)}
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, _: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            d = arrays(place)
            for number, (start, stop) in enumerate(episodes(d)):
                flags = np.zeros((3, stop - start + 1), bool)
                flags[0, 0] = flags[1, -1] = True
                flags[2, -1] = d["terminals"][stop - 1]
                last = d["last_observations"][number][None]
                steps = {
                    "observation": np.concatenate([d["observations"][start:stop], last]),
                    "action": np.pad(d["actions"][start:stop], ((0, 1), (0, 0))),
                    "reward": np.pad(d["rewards"][start:stop], (0, 1)),
                    **dict(zip(("is_first", "is_last", "is_terminal"), flags, strict=True)),
                }
                yield number, {"steps": steps}

    return Bench(data_dir=str(place / "tfds"), file_format="tfrecord")
