"""The family `clap`: text and audio."""
