"""What one part of the graph leaves for the next one and for the publish."""

from __future__ import annotations

from dataclasses import dataclass, field

import apache_beam as beam


@dataclass
class Outputs:
    """What a pipeline leaves for the next one and for the publish.

    Attributes:
        files: PCollections of FileRecord, by part.
        counts: PCollections of (name, int).
        dead: PCollections of dead-letter tables.
        forgotten: PCollections of tables of people who were left out, as `unisono.transforms.privacy.forget` gives.
    """

    files: dict[str, beam.PCollection] = field(default_factory=dict)
    counts: list[beam.PCollection] = field(default_factory=list)
    dead: list[beam.PCollection] = field(default_factory=list)
    forgotten: list[beam.PCollection] = field(default_factory=list)
