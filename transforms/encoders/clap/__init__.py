"""The family `clap`: transformers' CLAP models, for audio and text."""
