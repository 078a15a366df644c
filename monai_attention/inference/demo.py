"""Something to segment where no scan is at hand."""

from __future__ import annotations

from pathlib import Path

from monai_attention.io.write import check_writable, replacing


def make_phantom(path: str | Path, spacing: float = 1.5) -> Path:
    """Write the phantom head as a NIfTI image, voxels `spacing` mm wide, and return its path."""
    import nibabel

    from monai_attention.synthesis.phantom import head_image

    path = Path(path)
    check_writable(path.parent)
    image, _, affine = head_image(spacing)
    with replacing(path) as temporary:
        nibabel.save(nibabel.Nifti1Image(image, affine), temporary)
    return path
