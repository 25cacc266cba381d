"""Generated images with exact boxes: colored shapes and things, for the demonstration, for tests and to pretrain `nano`."""

from groundtune.data.scenes.draw import draw_scene
from groundtune.data.scenes.names import (
    COLORS,
    DEFAULT_CLASSES,
    DEMO_SHAPES,
    SHAPES,
    held_out,
    held_out_classes,
    scene_classes,
)
from groundtune.data.scenes.write import write_captioned_scenes, write_scenes

__all__ = [
    "COLORS",
    "DEFAULT_CLASSES",
    "DEMO_SHAPES",
    "SHAPES",
    "draw_scene",
    "held_out",
    "held_out_classes",
    "scene_classes",
    "write_captioned_scenes",
    "write_scenes",
]
