"""Bytes of text, pictures and sound: fetched by URI within limits, and decoded."""
