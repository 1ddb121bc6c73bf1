"""What one part of the graph leaves for the next one and for the publish."""

from __future__ import annotations

from dataclasses import dataclass, field

import apache_beam as beam


@dataclass
class Outputs:
    """The outputs of a part of the graph.

    Attributes:
        files: PCollections of FileRecord, by part of the run.
        counts: PCollections of (name, int).
        dead: PCollections of dead-letter tables.
        forgotten: PCollections of tables of the people who were left out, as `ForgetUsers` returns them.
    """

    files: dict[str, beam.PCollection] = field(default_factory=dict)
    counts: list[beam.PCollection] = field(default_factory=list)
    dead: list[beam.PCollection] = field(default_factory=list)
    forgotten: list[beam.PCollection] = field(default_factory=list)
