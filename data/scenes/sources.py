"""The source of scenes that a configuration names."""

from __future__ import annotations

from configs.data_schema import DataConfig
from data.scenes.layouts import Layouts
from data.scenes.posed_frames import PosedFrames
from data.scenes.rooms import Rooms
from data.scenes.scannet import ScanNet
from data.scenes.types import SceneSource


def open_source(config: DataConfig, seed: int) -> SceneSource:
    """Procedural rooms where `config.source` is None, else what `config.source_format` says it holds. Reads no file."""
    if config.source is None:
        return Rooms(config.rooms, seed)
    if config.source_format == "scannet":
        return ScanNet(config.source, config.scannet.every_nth, config.scannet.drop_labels)
    if config.source_format == "layouts":
        return Layouts(config.source, config.layouts, seed)
    return PosedFrames(config.source)
