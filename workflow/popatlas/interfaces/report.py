"""Steps of the report stage."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import Directory, File, Str, isdefined, traits

from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface

# what the pages of the cohort show
GROUP_FILES = ("group/metrics.parquet", "group/volumes.tsv", "group/trust.parquet", "group/fusion-bench.json",
               "cohort/remarks.tsv")  # fmt: skip

# what is written beside the pages of the cohort
BESIDE = ("methods.bib", "figures/template.webp", "figures/along.webp", "figures/along.gif", "subjects/order.js", "scans.js")


class DrawSubjectInputSpec(PopatlasInputSpec):
    """Inputs of DrawSubject; images are found in `out_dir` by their names and may be missing."""

    scan = Str(mandatory=True, desc="scan key, for example sub-01/ses-1/anat/sub-01_ses-1")
    out_dir = Directory(exists=True, mandatory=True, desc="output folder of the run")
    template_label = Str(mandatory=True, desc="name of the template")
    methods = traits.List(Str, desc="label fusion methods, the last one is drawn in the montage")
    out_page = File(mandatory=True, desc="HTML page; figures go to figures/ beside its folder")
    out_thumbnail = File(mandatory=True, desc="montage picture, PNG")


class DrawSubject(PopatlasInterface):
    """Draw the QC figures and write the QC page of a scan."""

    input_spec = DrawSubjectInputSpec

    def _execute(self) -> None:
        from popatlas.report.subject import draw_subject

        inputs = self.inputs
        methods = list(inputs.methods) if isdefined(inputs.methods) else []
        page, picture = Path(inputs.out_page), Path(inputs.out_thumbnail)
        figures = draw_subject(Path(inputs.out_dir), inputs.scan, inputs.template_label, methods, page, picture)
        self.notes = {"figures": figures}
        found = sorted((page.parent.parent / "figures").glob(f"{page.stem}_*.webp"))
        self.also_made = [file for file in found if file.stem.removeprefix(f"{page.stem}_").isalpha()]
        self.also_read = _there(Path(inputs.out_dir), f"{inputs.scan}_desc-metrics_table.tsv")


class WriteReportInputSpec(PopatlasInputSpec):
    """Inputs of WriteReport; tables and pictures are found in `out_dir` by their names and may be missing."""

    out_dir = Directory(exists=True, mandatory=True, desc="output folder of the run")
    ledger = File(exists=True, mandatory=True, desc="cohort/ledger.tsv")
    template_label = Str(mandatory=True, desc="name of the template")
    methods = traits.List(Str, desc="label fusion methods")
    per_page = traits.Int(50, usedefault=True, desc="scans in the montage of one page, at least 1")
    config = File(exists=True, desc="resolved configuration of the run (YAML or JSON); defaults when left out")
    out_page = File(mandatory=True, desc="first HTML page")


class WriteReport(PopatlasInterface):
    """Write the QC pages of the cohort, the methods text and its BibTeX file."""

    input_spec = WriteReportInputSpec

    def _execute(self) -> None:
        from popatlas.report.cohort import write_report

        inputs, page = self.inputs, Path(self.inputs.out_page)
        pages = write_report(
            out_dir=Path(inputs.out_dir),
            ledger=Path(inputs.ledger),
            label=inputs.template_label,
            methods=list(inputs.methods) if isdefined(inputs.methods) else [],
            per_page=max(inputs.per_page, 1),
            config=Path(inputs.config) if isdefined(inputs.config) else None,
            page=page,
        )
        self.notes = {"pages": pages}
        drawn = [page.parent / file for file in BESIDE]
        self.also_made = [*page.parent.glob("page-*.html"), *(file for file in drawn if file.is_file())]
        self.also_read = _there(Path(inputs.out_dir), *GROUP_FILES)


def _there(out_dir: Path, *files: str) -> list[Path]:
    """Return those of some files that are there."""
    return [out_dir / file for file in files if (out_dir / file).is_file()]
