"""One file per engine, each with `options(...)` for Beam."""
