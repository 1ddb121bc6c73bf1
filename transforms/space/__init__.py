"""The joint space: it maps each modality into one common space and fuses an item's modalities into one vector."""
