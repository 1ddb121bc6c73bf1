"""Where the tests find the repository, and the real data that lies beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAMPS = ROOT.parent / "shared" / "data" / "stamps"
