"""The template of a study: its name and version, which the names of files hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """Which template the scans are registered to.

    Attributes
    ----------
    label : str
        Its name.
    version : str
        A hash over its members, their images and all settings, or over an existing template.
    """

    label: str
    version: str

    @property
    def build_folder(self) -> str:
        """Folder of its iterations; the name holds the version."""
        return f"work/tpl-{self.label}/{self.version}"

    @property
    def column(self) -> str:
        """What the tables call it: name and version."""
        return f"{self.label}@{self.version}"

    @property
    def files(self) -> dict[str, str]:
        """The published template and its mask, as the fixed image of a registration."""
        stem = f"tpl-{self.label}/tpl-{self.label}"
        return {"fixed": f"{stem}_T1w.nii.gz", "fixed_mask": f"{stem}_desc-brain_mask.nii.gz"}

    def gate(self, scan: str) -> str:
        """Return what the gate said of the registration of a scan to it."""
        return f"{scan}_space-{self.label}_desc-gate_registration.json"
