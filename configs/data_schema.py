"""Settings of the data: where scenes come from, what is asked about them, how many rows of what.

As in `configs.schema`, whose `data` section they are: each default in one place; no threshold is said to be the paper's,
which publishes none.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.section import Section

TraceWording = Literal["plain", "varied"]


class RoomsConfig(Section):
    """Procedural rooms, rendered on this machine (`data.scenes.rooms`)."""

    train_rooms: int = Field(320, ge=1, description="Rooms of the training split")
    heldout_rooms: int = Field(90, ge=1, description="Rooms of the held-out split, disjoint from training")
    image_size: int = Field(168, ge=56, description="Side of the square pictures, pixels")
    style: Literal["plain", "rich"] = Field(
        "plain", description="plain: a dozen categories in typical colours, which a tiny model learns; rich: kinds of rooms, "
        "groups of furniture, clutter, patterns and light (data.scenes.interiors)")
    objects: tuple[int, int] = Field((4, 8), description="Fewest and most pieces of furniture on the floor of a room")
    views: int = Field(8, ge=2, description="Pictures of one multi-view row (the paper: 8)")
    video_frames: int = Field(8, ge=2, description="Frames of one video row, even (the model merges two frames)")
    frames_per_room: int = Field(16, ge=8, description="Camera poses rendered per room; rows draw from them")


class ScanNetConfig(Section):
    """Scans in ScanNet's layout (`data.scenes.scannet`)."""

    every_nth: int = Field(20, ge=1, description="Of the capture's frames, those whose number is a multiple of this are used: 30 are "
                           "filmed a second, and neighbours show the same")
    drop_labels: tuple[str, ...] = Field(
        ("wall", "floor", "ceiling", "remove", "object", "objects"),
        description="Annotated labels that are no things to ask about, or name none; they still count for the extent and the "
        "area of the room")


class LayoutsConfig(Section):
    """Room layouts without pictures, drawn here (`data.scenes.layouts`)."""

    image_size: int = Field(336, ge=56, description="Side of the square pictures, pixels")
    frames_per_scene: int = Field(32, ge=8, description="Camera poses per scene, one walk: enough to see most things of a large room")


class ConstructionConfig(Section):
    """Thresholds of the question construction; docs/data.md gives the reason of each. Ours: the paper publishes none."""

    min_visible: float = Field(0.35, ge=0, le=1, description="Least share of an object's own pixels left by occlusion")
    min_area: float = Field(0.012, ge=0, le=1, description="Least box area as a share of the picture")
    max_truncation: float = Field(0.45, ge=0, le=1, description="Most of the projected box that may lie outside the picture")
    glimpse_share: float = Field(0.25, gt=0, le=1, description="Share of the first two from which a picture shows a trace of an object")
    min_distance: float = Field(0.1, gt=0, description="Metres: the smallest distance that is asked for")
    min_distance_gap: float = Field(0.3, ge=0, description="Metres by which the nearest option must win")
    direction_margin: float = Field(10.0, ge=0, description="Degrees a direction must keep from a sector border")
    center_epsilon: float = Field(0.05, ge=0, description="Metres any one centre may move without another answer to a choice")
    min_count: int = Field(1, ge=1, description="Least number of things whose count is asked")
    floor_tolerance: float = Field(0.05, ge=0, description="Share by which drawn walls may enclose another area than is asked for")
    near_plane: float = Field(0.1, gt=0, description="Metres in front of the camera where projection starts")
    mask_side: int = Field(320, ge=32, description="Longest side, pixels, of the masks that measure real pictures' visibility")
    depth_tolerance: float = Field(0.1, ge=0, description="Metres by which measured depth may miss an object's box")
    min_measured: float = Field(0.5, ge=0, le=1, description="Share of an object's pixels with depth below which boxes decide")
    min_filled: float = Field(0.1, ge=0, le=1, description="Share of uncovered pixels with depth in the box, below which it is see-through")
    localization_per_room: int = Field(10, ge=0, description="Most localisation rows of one room; the kinds below likewise")
    single_image_per_room: int = Field(10, ge=0)
    multi_view_per_room: int = Field(2, ge=0)
    video_per_room: int = Field(4, ge=0)
    coldstart_per_room: int = Field(6, ge=0)
    trace_wording: TraceWording = Field("plain", description="Traces from geometry: one short sentence per question type, which a "
                                        "tiny model can learn, or several with the steps of the calculation")


class CompositionConfig(Section):
    """Rows of one split, chosen over all its scenes: question types in equal numbers, letters of right answers too.

    What the scenes cannot give is told. No number has a default: which set is to be built, only its maker knows.
    """

    localization: int = Field(ge=0, description="Rows that ask for boxes; as many as single_image: about the same questions")
    single_image: int = Field(ge=0, description="Rows about one picture")
    multi_view: int = Field(ge=0, description="Rows about several views")
    video: int = Field(ge=0, description="Rows about frames in temporal order")
    coldstart: int = Field(ge=0, description="Traces that explain chosen rows, a third of them boxes")


class BuildConfig(Section):
    """From scenes to a data folder (`data.build`)."""

    train: CompositionConfig | None = Field(None, description="Rows of the training split; none: all that the scenes offer")
    heldout: CompositionConfig | None = Field(None, description="Rows of the held-out split; none: all that the scenes offer")
    heldout_share: float = Field(0.2, gt=0, lt=1, description="Share of the places held out where no lists say which; rooms have "
                                 "their own number")
    train_list: str | None = Field(None, description="File with the training scenes, one name a line (ScanNet: scannetv2_train.txt)")
    heldout_list: str | None = Field(None, description="File with the held-out scenes; scenes in neither list are left out")
    max_bad_share: float = Field(0.05, ge=0, le=1, description="Scenes that may be left out because they cannot be read or built "
                                 "from; one always may. More are a fault of the source, not of scenes")

    @model_validator(mode="after")
    def _both_lists_or_none(self) -> "BuildConfig":
        if (self.train_list is None) != (self.heldout_list is None):
            raise ValueError("train_list and heldout_list: give both, or neither")
        return self


class DataConfig(Section):
    path: str | None = Field(None, description="A built data folder (train/ and heldout/ in the released layout); none: build")
    source: str | None = Field(None, description="Scenes to build from, a folder or file; none: procedural rooms")
    source_format: Literal["posed_frames", "scannet", "layouts"] = Field("posed_frames", description="What `source` holds (docs/data.md)")
    preset: Literal["ladder", "paper"] = Field("ladder", description="Prompt templates (data.prompts)")
    rooms: RoomsConfig = RoomsConfig()
    scannet: ScanNetConfig = ScanNetConfig()
    layouts: LayoutsConfig = LayoutsConfig()
    construction: ConstructionConfig = ConstructionConfig()
    build: BuildConfig = BuildConfig()
