"""The one error a user meets: what was wrong, in which file, and what to do about it."""

from __future__ import annotations

from pathlib import Path


class Refusal(ValueError):  # noqa: N818 - the word users meet in verdicts and messages
    """An input, a bundle or an output that the program refuses, with a code that stays the same between releases.

    Args:
        code: stable, upper case, for machines; for example `E-GAP`. `tests/FAULTS.md` lists them all.
        message: what was expected and what came, in one sentence, without anything that names the patient.
        path: the file or folder at fault, if there is one.
        remedy: what the user can do about it.
    """

    def __init__(self, code: str, message: str, *, path: str | Path | None = None, remedy: str = "") -> None:
        self.code = code
        self.message = message
        self.path = None if path is None else Path(path)
        self.remedy = remedy
        self.told = False  # by another process, see `finetune.processes`
        where = f"{self.path}: " if self.path is not None else ""
        hint = f" ({remedy})" if remedy else ""
        super().__init__(f"{code} {where}{message}{hint}")

    def __reduce__(self) -> tuple:
        """Keep the keyword arguments when the error crosses a process boundary."""
        return _rebuild, (self.code, self.message, self.path, self.remedy)


def _rebuild(code: str, message: str, path: Path | None, remedy: str) -> Refusal:
    return Refusal(code, message, path=path, remedy=remedy)
