"""Packaging: metadata, dependency ranges and the wheel's contents (the code and the bundles)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PACKAGE = (ROOT / "monai_attention/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'__version__ = "(.+)"', PACKAGE).group(1)
DICOM_CODECS = ["pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.0", "pylibjpeg-rle>=2.0"]
TRAIN = ["fire>=0.5", "jsonschema>=4"]
TRACKING = ["tensorboard", "mlflow"]  # any that MONAI's handlers can do with

setup(
    name="monai_attention",
    version=VERSION,
    description="Attention networks for 3-D medical volumes in MONAI: bundles with weights, strict reading, a command",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["monai_attention*"]), "monai_attention.packaged_bundles"],
    package_dir={"monai_attention.packaged_bundles": "bundles"},
    package_data={"monai_attention": ["py.typed"], "monai_attention.packaged_bundles": ["**/*"]},
    install_requires=[
        "torch>=2.10",
        "monai>=1.6,<1.7",
        "numpy>=1.26",
        "scipy>=1.11",
        "nibabel>=5.2",
        "pydicom>=3.0.2",
        "highdicom>=0.27",
        "itk>=5.4",
        "pillow>=10.1",
        "pytorch-ignite>=0.5",
        "tqdm>=4.60",
    ],
    extras_require={
        "dicom-codecs": DICOM_CODECS,
        "train": TRAIN,
        "tracking": TRACKING,
        "dev": [
            *DICOM_CODECS,
            *TRAIN,
            "pytest>=8",
            "pytest-timeout>=2",
            "hypothesis>=6",
            "einops>=0.7",
            "ruff>=0.6",
            "mypy>=1.10",
        ],
    },
    entry_points={"console_scripts": ["monai-attention=monai_attention.cli:main"]},
)
