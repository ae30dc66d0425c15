"""Configurations that cannot be read, or that YAML would read as something else than they say."""

from __future__ import annotations

from pathlib import Path

from ..casebook import STOPS, Case, checked, said

TITLE = "Configuration"

ALIASES = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 9)
)


def absent(folder: Path) -> str:
    return said("check", folder / "bids", "--config", folder / "absent.yaml")


def folder_for_a_file(folder: Path) -> str:
    return said("check", folder / "bids", "--config", folder)


def template_elsewhere(folder: Path) -> str:
    (folder / "bids" / "sub-01").mkdir(parents=True)
    (folder / "c.yaml").write_text("atlas: {template: my/template.nii.gz}")
    return said("plan", folder / "bids", folder / "out", "--config", folder / "c.yaml").replace(str(Path.cwd()), "")


CASES = [
    Case("configuration", "file does not exist", STOPS, "No such file", absent),
    Case("configuration", "a folder", STOPS, "Is a directory", folder_for_a_file),
    Case("configuration", "file of 0 bytes", STOPS, "0 bytes", checked()),
    Case("configuration", "Latin-1", STOPS, "byte 0xf6 in line 2", checked("atlas:\n  label: größe".encode("latin-1"))),
    Case("configuration", "UTF-16", STOPS, "it is in UTF-16", checked("atlas: {label: a}".encode("utf-16"))),
    Case("configuration", "no text", STOPS, "no text", checked(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")),
    Case("configuration", "tab", STOPS, "indent with spaces", checked("atlas:\n\tlabel: a")),
    Case("configuration", "bracket left open", STOPS, "line 1", checked("fuse: {methods: [majority")),
    Case("configuration", "list at the top", STOPS, "expected keys and values", checked("- atlas")),
    Case("configuration", "nested too deep", STOPS, "levels of sections", checked("a: " + "[" * 10_000)),
    Case("configuration", "aliases of aliases", STOPS, "more than 100000 values", checked(ALIASES)),
    Case("configuration", "key twice", STOPS, "in line 1 and in line 2", checked("fuse: {select: 2}\nfuse: {maps: false}")),
    Case("configuration", "subject 01 without quotes", STOPS, "quote it: '01'", checked("cohort: {include: [01, 02]}")),
    Case("configuration", "subject as a number", STOPS, "quote it: '7'", checked({"cohort": {"exclude": [7]}})),
    Case("configuration", "number with colons", STOPS, "read as the number 90", checked("train: {minutes: 1:30}")),
    Case("configuration", "number with underscores", STOPS, "or write 1000", checked("train: {scans: 1_000}")),
    Case("configuration", "date as a label", STOPS, "read as a date", checked("atlas: {label: 2024-01-01}")),
    Case("configuration", "no as a label", STOPS, "quote the word", checked("atlas: {label: no}")),
    Case("configuration", "not a number", STOPS, "nan is not a finite", checked("preprocess: {resolution_mm: .nan}")),
    Case("configuration", "infinite", STOPS, "gate.inverse_error: inf", checked("register: {gate: {inverse_error: .inf}}")),
    Case("configuration", "number without a dot", STOPS, "write 1.0e-06", checked("preprocess: {n4: {tolerance: 1e-6}}")),
    Case("configuration", "3.0 iterations", STOPS, "write 3", checked({"atlas": {"iterations": 3.0}})),
    Case("configuration", "empty section", STOPS, "or remove the line", checked("atlas:")),
    Case("configuration", "template does not exist", STOPS, "my/template.nii.gz", template_elsewhere),
]
