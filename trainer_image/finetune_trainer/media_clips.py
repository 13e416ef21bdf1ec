"""Videos as frames: images one after another, or an animated image. For films there is no decoder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageSequence

from finetune_trainer.media_files import IMAGE_FORMATS, Held, MediaError, evenly, open_image, scaled_down

_MILLISECONDS = 100
"""How long a frame is shown whose file does not say it: what browsers do."""
_EARLIEST = 1e-6
"""Seconds by which a moment is behind the end of the frame before, whatever the sums of their lengths round to."""


@dataclass(frozen=True)
class Clip:
    """A video: ``frames`` is uint8 (n, height, width, 3), of which ``fps`` are a second."""

    frames: np.ndarray
    fps: float


def open_clip(held: Held, *, fps: float, most: int, max_pixels: int) -> Clip:
    """The video in ``held``.

    Args:
        held: its frames, or one animated image.
        fps: how many frames a second are taken; of frames, how many these are.
        most: frames at most.
        max_pixels: width times height of a frame.

    Raises:
        MediaError: it is none, or damaged, or its frames differ in size.
    """
    if held.of > 1:
        frames = [np.asarray(open_image(file, max_pixels)) for file in held.files]
        if len(sizes := {frame.shape for frame in frames}) > 1:
            told = ", ".join(f"{shape[1]}x{shape[0]}" for shape in sorted(sizes))
            raise MediaError(f"its frames differ in size: {told}")
        return Clip(np.stack(frames), fps * len(frames) / held.of)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _looked_at(held.files[0], fps, most, max_pixels)
    except Image.UnidentifiedImageError as error:
        raise MediaError(
            "it is no animated image (GIF, WEBP, PNG). For films (MP4 and the like) there is no decoder: name their "
            "frames, a list or a directory of images, such as ffmpeg -i … -vf fps=2 frames/%04d.jpg makes"
        ) from error
    except Exception as error:  # a damaged file makes the decoders raise whatever they like
        raise MediaError(f"the video is damaged: {error}") from error


def _looked_at(content: bytes, fps: float, most: int, max_pixels: int) -> Clip:
    """What is seen of an animated image at the moments that ``fps`` asks for, or at ``most`` of these."""
    ends = np.cumsum([_seconds(frame) for frame in _frames(content)])
    moments = math.ceil(round(float(ends[-1]) * fps, 6))
    chosen = evenly(moments, most)
    wanted = np.searchsorted(ends, [moment / fps + _EARLIEST for moment in chosen], side="right").tolist()
    seen = {
        number: np.asarray(scaled_down(frame.convert("RGB"), max_pixels))
        for number, frame in enumerate(_frames(content))
        if number in wanted
    }
    return Clip(np.stack([seen[number] for number in wanted]), fps * len(chosen) / moments)


def _frames(content: bytes) -> Iterator[Image.Image]:
    with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as opened:
        for frame in ImageSequence.Iterator(opened):
            frame.load()  # some formats know only then how long it is shown
            yield frame


def _seconds(frame: Image.Image) -> float:
    return float(frame.info.get("duration") or _MILLISECONDS) / 1000
