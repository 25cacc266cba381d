"""Generated images with exact boxes, for the demonstration, for tests and to pretrain `nano`."""

from groundtune.data.scenes.draw import draw_scene
from groundtune.data.scenes.shapes import SHAPES, scene_classes
from groundtune.data.scenes.write import write_captioned_scenes, write_scenes

__all__ = ["SHAPES", "draw_scene", "scene_classes", "write_captioned_scenes", "write_scenes"]
