# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A small world of coloured shapes: clips of it, and what can be asked about them.

`random_clip(seed, index)` decides what happens in a clip, `draw_frames` paints it, `write_video` stores it as H.264,
`questions` and `caption` say what is true of it. The same seed and index always give the same clip.
"""

import math
import random
import shutil
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw


SIZE = 64  # pixels, both ways
FPS = 8
LENGTH = 16  # video frames: two seconds

COLOURS = {
    "red": (225, 45, 45),
    "green": (45, 185, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 220, 50),
    "purple": (165, 55, 205),
    "white": (240, 240, 240),
}
# Corners of a shape of radius 1 that points up; y grows downwards.
SHAPES = {
    "circle": [(math.sin(a * math.tau / 24), -math.cos(a * math.tau / 24)) for a in range(24)],
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0, -1.2), (0.65, 1), (-0.65, 1)],
    "cross": [
        (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
        (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
    ],
    "bar": [(-0.3, -1.2), (0.3, -1.2), (0.3, 1.2), (-0.3, 1.2)],
}  # fmt: skip
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TURNS = {"clockwise": 1, "anticlockwise": -1}
TURNING_SHAPES = ["triangle", "bar"]
ARM = 1.1  # turning, a shape swings like the hand of a clock: radii from the axis to its middle


@dataclass(frozen=True)
class Shape:
    """One shape in one frame; `angle` is clockwise in degrees."""

    name: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float = 0.0


@dataclass(frozen=True)
class Clip:
    """A shape moves or turns; it may appear late, and it may change its colour on the way."""

    shape: Shape
    background: int
    way: str  # of the motion or the turn
    distance: float  # in pixels or degrees over the whole clip
    appears: float  # when it is first seen, from 0 (start) to 1 (end)
    next_colour: str | None
    changes: float  # when it takes on the next colour

    def shapes_at(self, moment: float) -> list[Shape]:
        """The shapes to be seen at `moment`, from 0 (start) to 1 (end)."""
        if moment < self.appears:
            return []
        shape = self.shape
        if self.next_colour and moment >= self.changes:
            shape = replace(shape, colour=self.next_colour)
        if self.way in MOTIONS:
            right, down = MOTIONS[self.way]
            steps = self.distance * (moment - 0.5)
            return [replace(shape, x=shape.x + right * steps, y=shape.y + down * steps)]
        angle = shape.angle + TURNS[self.way] * self.distance * moment
        right, down = pointing(angle)
        arm = ARM * shape.radius
        return [replace(shape, x=shape.x + arm * right, y=shape.y + arm * down, angle=angle)]


def pointing(angle: float) -> tuple[float, float]:
    """The direction (right, down) of a shape turned by `angle` degrees."""
    return math.sin(math.radians(angle)), -math.cos(math.radians(angle))


def random_clip(seed: str | int, index: int) -> Clip:
    """Clip number `index` of the world `seed`."""
    rng = random.Random(f"{seed}/{index}")
    way = rng.choice([*MOTIONS, *TURNS])
    name = rng.choice(TURNING_SHAPES if way in TURNS else list(SHAPES))
    colour, next_colour = rng.sample(list(COLOURS), 2)
    radius, background = rng.uniform(11, 14), rng.randrange(10, 60)
    if way in TURNS:
        x, y, angle = rng.uniform(26, SIZE - 26), rng.uniform(26, SIZE - 26), rng.uniform(-30, 30)
        distance = rng.uniform(90, 180)
    else:
        distance, angle = rng.uniform(24, 34), 0.0
        along = rng.uniform(radius + distance / 2, SIZE - radius - distance / 2)
        across = rng.uniform(radius, SIZE - radius)
        x, y = (along, across) if way in ("left", "right") else (across, along)
    appears = rng.uniform(0.2, 0.35) if rng.random() < 0.4 else 0.0
    changes = rng.uniform(0.6, 0.8)  # towards the end
    shape = Shape(name, colour, x, y, radius, angle)
    return Clip(shape, background, way, distance, appears, next_colour if rng.random() < 0.65 else None, changes)


def draw_frame(shapes: list[Shape], background: int, scale: int = 3) -> np.ndarray:
    """A picture of the shapes, uint8 (SIZE, SIZE, 3)."""
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), (background,) * 3)
    painter = ImageDraw.Draw(image)
    for shape in shapes:
        sin, cos = math.sin(math.radians(shape.angle)), math.cos(math.radians(shape.angle))
        corners = [
            (shape.x + shape.radius * (x * cos - y * sin), shape.y + shape.radius * (x * sin + y * cos))
            for x, y in SHAPES[shape.name]
        ]
        painter.polygon([(x * scale, y * scale) for x, y in corners], fill=COLOURS[shape.colour])
    return np.asarray(image.reduce(scale))  # averages, so edges are smooth


def draw_frames(clip: Clip) -> np.ndarray:
    """All frames of a clip, uint8 (LENGTH, SIZE, SIZE, 3)."""
    return np.stack([draw_frame(clip.shapes_at(i / (LENGTH - 1)), clip.background) for i in range(LENGTH)])


def write_video(path: str | Path, frames: np.ndarray) -> None:
    """Stores frames as an H.264 mp4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "18", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


CAPTION_QUESTION = "Describe the video."
QUESTIONS = {
    "caption": [CAPTION_QUESTION],
    "colour": ["What colour is the shape?", "Which colour do you see?"],
    "shape": ["What shape is it?", "Which shape do you see?"],
    "motion": ["Which way does it move?", "In which direction does the shape move?"],
    "turn": ["Which way does it turn?", "In which direction does the shape turn?"],
    "first colour": ["Which colour comes first?", "What is the first colour?"],
    "last colour": ["Which colour comes last?", "What is the last colour?"],
    "appear": ["Does it appear late?", "Is the screen empty at first?"],
}


def caption(clip: Clip) -> str:
    """One sentence that says all that can be asked."""
    does = f"moves {clip.way}" if clip.way in MOTIONS else f"turns {clip.way}"
    late = "appears and " if clip.appears else ""
    then = f" and becomes {clip.next_colour}" if clip.next_colour else ""
    return f"a {clip.shape.colour} {clip.shape.name} {late}{does}{then}"


def questions(clip: Clip, rng: random.Random) -> list[tuple[str, str, str]]:
    """(type, question, answer) of all that is worth asking, in random order and wording."""
    answers = {"caption": caption(clip), "shape": clip.shape.name, "appear": "yes" if clip.appears else "no"}
    answers["motion" if clip.way in MOTIONS else "turn"] = clip.way
    if clip.next_colour:
        answers |= {"first colour": clip.shape.colour, "last colour": clip.next_colour}
    else:
        answers["colour"] = clip.shape.colour
    asked = [(kind, rng.choice(QUESTIONS[kind]), answer) for kind, answer in answers.items()]
    rng.shuffle(asked)
    return asked


def clear_output(folder: Path, example: str, own: set[str]) -> None:
    """Makes the folder of an example, or empties it of what an earlier run wrote, told by a mark and by names.

    Ends where the folder is not empty and has no mark, or holds more: what is in it may be somebody's work.
    """
    mark = folder / f".made-by-{example}"
    if folder.exists() and not folder.is_dir():
        raise SystemExit(f"{folder} is a file, expected a folder. Name another one with --output.")
    found = sorted(path.name for path in folder.glob("*"))
    if found and mark.name not in found:
        raise SystemExit(
            f"{folder} is not empty, and without a file {mark.name} it is not known to be the {example} example's. "
            "Delete the folder, or name another one with --output."
        )
    if others := [name for name in found if name not in {*own, mark.name}]:
        raise SystemExit(f"{folder} holds {others[0]!r}, which would be deleted. Name another folder with --output.")
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    for path in (folder / name for name in found if name != mark.name):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
