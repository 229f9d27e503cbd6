"""`ladder data frames`: the pictures, poses and depth of ScanNet's captures, written beside them.

What holds: goes on where an earlier call stopped; one capture that cannot be read is told, and the others are exported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from configs.data_schema import ScanNetConfig
from launch.progress import Progress

_SAY_EVERY = 50


def add_command(data: argparse._SubParsersAction) -> None:
    """The action of `ladder data`."""
    frames = data.add_parser("frames", help="export color/, depth/, pose/ and intrinsic/ from ScanNet's .sens captures")
    frames.add_argument("folder", metavar="DIR", type=Path, help="folder of scans: DIR/scene0000_00/scene0000_00.sens ...")
    default = ScanNetConfig().every_nth
    frames.add_argument("--every", type=int, metavar="N", default=default,
                        help=f"frames whose number is a multiple of N, as data.scannet.every_nth (default: {default})")
    frames.add_argument("--scene", action="append", default=[], metavar="ID", help="only this scene; may be repeated")
    frames.set_defaults(command=_frames)


def _frames(options: argparse.Namespace) -> int:
    from data.scenes.scannet import ScanNet, export_frames
    from data.scenes.types import SceneError, SourceError

    if options.every < 1:
        print("ladder data frames: --every must be at least 1", file=sys.stderr)
        return 2
    try:
        scenes = options.scene or ScanNet(str(options.folder), options.every, ()).scene_ids()
    except SourceError as error:
        print(f"ladder data frames: {error.place}: {error.reason}; name the folder of the scans, which has for each SCENE a "
              "folder SCENE with SCENE.sens in it", file=sys.stderr)
        return 2
    say, bad = Progress(), 0
    for index, scene in enumerate(scenes, start=1):
        count = 0
        try:
            for count, number in enumerate(export_frames(options.folder, scene, options.every), start=1):
                if count % _SAY_EVERY == 0:
                    say(f"{scene} ({index}/{len(scenes)}): frame {number}")
            say(f"{scene} ({index}/{len(scenes)}): {count} frames written")
        except SceneError as error:
            bad += 1
            say(f"not exported: {error}")
    say(f"{len(scenes) - bad} of {len(scenes)} scenes are exported; read them with data.scannet.every_nth={options.every}, "
        "or a multiple of it")
    return 1 if bad else 0
