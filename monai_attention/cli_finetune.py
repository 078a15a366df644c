"""What the command says of labelled cases: call one public function, print. Heavy imports happen inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_attention.io.volume import ReadOptions

OK, SOME_REFUSED = 0, 1


def check_labelled(inputs: Sequence[str], options: ReadOptions, *, page: str | None, as_json: bool) -> int:
    """Judge images with their label maps."""
    from monai_attention.finetune.dataset import find_labelled
    from monai_attention.finetune.preflight import format_classes, preflight
    from monai_attention.io.check import format_table
    from monai_attention.report.training_data import write_training_data

    found = preflight(find_labelled(inputs), options=options, pictures=page is not None, progress=not as_json)
    if page is not None:
        write_training_data(page, found.to_json(), {one.case.id: one.picture for one in found.cases})
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        print(format_table([one.verdict for one in found.cases]))
        print(f"\n{format_classes(found)}" + (f"\nlook at {page}" if page else ""))
    return OK if len(found.usable) == len(found.cases) else SOME_REFUSED
