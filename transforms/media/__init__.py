"""Texts, pictures and sounds: fetched by URI, within limits, and decoded."""
