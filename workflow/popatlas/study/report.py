"""The report as the rules ask for it: pages and pictures of the scans, and what they show."""

from __future__ import annotations

from dataclasses import dataclass

from popatlas.study.rules import Wildcards, option


@dataclass(frozen=True)
class Report:
    """What the rules of the report ask.

    Attributes
    ----------
    own : tuple of str
        Scans of the cohort that have not failed.
    undrawn : frozenset of str
        Scans whose page has failed: the report does without their pictures.
    methods : tuple of str
        Everything that labels a scan; the last one is drawn.
    """

    own: tuple[str, ...]
    undrawn: frozenset[str]
    methods: tuple[str, ...]

    @property
    def method_option(self) -> str:
        """Option of the steps for the methods."""
        return option("--methods", self.methods)

    @property
    def drawn(self) -> list[str]:
        """Scans that have a page."""
        return [scan for scan in self.own if scan not in self.undrawn]

    @property
    def thumbnails(self) -> list[str]:
        """The montage picture of each of them."""
        return [f"report/thumbnails/{scan}.png" for scan in self.drawn]

    @staticmethod
    def page(wildcards: Wildcards) -> str:
        """Return the QC page of a scan."""
        return f"report/subjects/{wildcards.scan.rsplit('/', 1)[-1]}.html"
