"""What a field does to images, as MONAI's dictionary transforms: for configurations of bundles."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from monai_attention.io.cases import strip_suffix
from monai_attention.io.fields import write_field
from monai_attention.registration.fields import warp
from monai_attention.registration.world import ddf_to_mm


class Warpd(MapTransform):
    """Warp images by a field on their grid.

    Args:
        keys: channel-first images (C, *S).
        ddf: key of the field (n, *S), see `fields`.
        mode: `linear`, `cubic`, or `nearest` for labels.
    """

    def __init__(self, keys: KeysCollection, ddf: str = "pred", mode: str = "linear") -> None:
        super().__init__(keys)
        self.ddf = ddf
        self.mode = mode

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same with the images warped; what else they know (affine, file name) stays."""
        found = dict(data)
        ddf = _plain(found[self.ddf])
        for key in self.key_iterator(found):
            image = _plain(found[key])[None].float()
            warped = warp(image, ddf[None].to(image.device), mode=self.mode)[0]
            found[key] = MetaTensor(warped, meta=found[key].meta) if isinstance(found[key], MetaTensor) else warped
        return found


class SaveFieldd(MapTransform):
    """Write fields as ITK, ANTs and Slicer apply them, see `io.fields.write_field`.

    Args:
        keys: one, of a ddf on the grid of an image (3, *S), see `fields`.
        image: key of that image, which knows its affine and, for the name, its file.
        output_dir: a field goes to `<output_dir>/<name>/<name>_field.nii.gz`.
    """

    def __init__(self, keys: KeysCollection, image: str, output_dir: str | Path) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"expected one key, for all would have the same file; got {self.keys}")
        self.image = image
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same; the fields are written.

        Raises:
            Refusal: see `io.fields.write_field`.
        """
        image = data[self.image]
        affine = image.affine.to(torch.float64)
        name = strip_suffix(Path(image.meta["filename_or_obj"])).name
        for key in self.key_iterator(dict(data)):
            folder = self.output_dir / name
            folder.mkdir(parents=True, exist_ok=True)
            mm = ddf_to_mm(_plain(data[key])[None].cpu(), affine)[0]
            write_field(folder / f"{name}_field.nii.gz", mm.numpy(), affine.numpy())
        return dict(data)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
