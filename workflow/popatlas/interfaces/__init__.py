"""One Nipype interface per step: the typed contract that a rule calls."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from popatlas.surroundings import silence

if TYPE_CHECKING:
    from popatlas.interfaces.base import PopatlasInterface

silence(os.environ)  # before Nipype is imported, whoever imports a step

# steps of the pipeline: each has its rule
INTERFACES: dict[str, str] = {
    "AlignChannel": "popatlas.interfaces.preprocess",
    "AverageTemplate": "popatlas.interfaces.groupwise",
    "BenchFusion": "popatlas.interfaces.bench",
    "BuildTemplateAlong": "popatlas.interfaces.along",
    "ClassifyTemplate": "popatlas.interfaces.tissues",
    "CoRegisterMembers": "popatlas.interfaces.xcoreg",
    "CorrectAndConform": "popatlas.interfaces.preprocess",
    "DescribeTemplate": "popatlas.interfaces.groupwise",
    "DrawSubject": "popatlas.interfaces.report",
    "ExtractBrain": "popatlas.interfaces.preprocess",
    "ExtractBrainTemplate": "popatlas.interfaces.preprocess",
    "FuseLabels": "popatlas.interfaces.fuse",
    "InitialiseTemplate": "popatlas.interfaces.groupwise",
    "LabelsToNative": "popatlas.interfaces.native",
    "MakeReference": "popatlas.interfaces.groupwise",
    "MeasureScan": "popatlas.interfaces.measure",
    "NormaliseBrain": "popatlas.interfaces.preprocess",
    "PredictDeformations": "popatlas.interfaces.predict",
    "PropagateLabels": "popatlas.interfaces.fuse",
    "PublishAlong": "popatlas.interfaces.along",
    "RegisterImages": "popatlas.interfaces.register",
    "RegisterRigid": "popatlas.interfaces.register",
    "ScoreTruth": "popatlas.interfaces.measure",
    "SegmentScan": "popatlas.interfaces.fusion_networks",
    "SegmentTissues": "popatlas.interfaces.tissues",
    "SettleLedger": "popatlas.interfaces.cohort",
    "TabulateAtlasWeights": "popatlas.interfaces.bench",
    "TabulateCohort": "popatlas.interfaces.measure",
    "TrainDataParameters": "popatlas.interfaces.fusion_networks",
    "TrainRegistration": "popatlas.interfaces.train",
    "TrainSegmenter": "popatlas.interfaces.fusion_networks",
    "WriteReport": "popatlas.interfaces.report",
    "WriteTrainingTable": "popatlas.interfaces.train",
}
# steps for use by hand
TOOLS: dict[str, str] = {
    "BuildConditionalAtlas": "popatlas.interfaces.conditional",
    "CoRegisterGroup": "popatlas.interfaces.xcoreg",
    "DeformImages": "popatlas.interfaces.deform",
    "FindTypes": "popatlas.interfaces.types",
    "PredictGroup": "popatlas.interfaces.combined",
    "TrainCombined": "popatlas.interfaces.combined",
}
STEPS = INTERFACES | TOOLS


def load_interface(name: str) -> type[PopatlasInterface]:
    """Import and return the interface class `name`; only its own module is imported."""
    interface: type[PopatlasInterface] = getattr(import_module(STEPS[name]), name)
    return interface
