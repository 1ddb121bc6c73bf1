"""The columns of embeddings/, and those that carry an earlier run's embeddings to the encode stage."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from unisono.transforms.base.columns import EMBEDDING

# Suffixes of column names, after the modality.
HASH, ENCODER = "_hash", "_encoder"
PREVIOUS_HASH, PREVIOUS_EMBEDDING = "_previous_hash", "_previous_embedding"


def embeddings_schema(id_type: pa.DataType, dims: Mapping[str, int], dtype: str = "float32") -> pa.Schema:
    """Returns the schema of embeddings/, which has one row for each item.

    Columns (the last three exist for each modality `<m>`):
        item_id: the type of the catalogue's ids. The id of the item.
        title: string. The title of the item; null if it has none.
        <m>_hash: string. The hash of the encoded content, in hexadecimal; for a list of contents, their hashes with
            commas between them. Null if the item has no content of this modality. Null also if a content failed, so
            that the next run tries it again.
        <m>_encoder: string. The encoder_id of the encoder; null where the embedding is null.
        <m>_embedding: list of `dtype`, all of one length. The embedding; for a list of contents, the mean of their
            unit embeddings. Null if the item has no usable content of this modality.

    Args:
        id_type: the type of the catalogue's ids.
        dims: the length of an embedding by modality, in the order in which the modalities are encoded.
        dtype: the number format of stored embeddings, `float32` or `float16`.
    """
    value = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    fields = [pa.field("item_id", id_type), pa.field("title", pa.string())]
    for modality, dim in dims.items():
        fields += [
            pa.field(modality + HASH, pa.string()),
            pa.field(modality + ENCODER, pa.string()),
            pa.field(modality + EMBEDDING, pa.list_(value, dim)),
        ]
    return pa.schema(fields)
