"""The joint space: what maps each modality into it, and how modalities become one vector."""
