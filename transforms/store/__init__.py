"""What a run writes and reads back: shards, manifests, dead letters, small vectors, the publish."""
