"""The family `lite`: encoders of text, images and audio that need no checkpoint."""
