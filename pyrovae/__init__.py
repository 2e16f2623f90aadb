"""Train variational autoencoders written in Pyro, then measure, datum by datum, how good the inference is."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrovae import data as data
    from pyrovae.diagnostics.audit import audit as audit
    from pyrovae.diagnostics.calibration import calibrate as calibrate
    from pyrovae.diagnostics.comparison import compare as compare
    from pyrovae.diagnostics.decomposition import decompose as decompose
    from pyrovae.diagnostics.evidence import log_evidence as log_evidence
    from pyrovae.diagnostics.evidence_table import evidence_table as evidence_table
    from pyrovae.diagnostics.gaps import inference_gaps as inference_gaps
    from pyrovae.diagnostics.gradients import gradient_statistics as gradient_statistics
    from pyrovae.diagnostics.reconstruction import reconstruct as reconstruct
    from pyrovae.diagnostics.reference import sample_posterior as sample_posterior
    from pyrovae.diagnostics.simulated import simulated_gap as simulated_gap
    from pyrovae.models import decoders as decoders
    from pyrovae.models import encoders as encoders
    from pyrovae.models import priors as priors
    from pyrovae.models.networks import mlp as mlp
    from pyrovae.models.vae import VAE as VAE
    from pyrovae.models.vae import build_vae as build_vae
    from pyrovae.reporting.report import write_report as write_report
    from pyrovae.results import Evidence as Evidence
    from pyrovae.results import read as read
    from pyrovae.results import write as write
    from pyrovae.results.gradients import gradient_summary as gradient_summary
    from pyrovae.results.gradients import snr_slopes as snr_slopes
    from pyrovae.results.sandwich import evidence_summary as evidence_summary
    from pyrovae.results.summary import summary as summary
    from pyrovae.results.verdicts import verdict_sentences as verdict_sentences
    from pyrovae.target import Target as Target
    from pyrovae.training.checkpoint import CheckpointError as CheckpointError
    from pyrovae.training.checkpoint import load as load
    from pyrovae.training.checkpoint import save as save
    from pyrovae.training.fit import FitConfig as FitConfig
    from pyrovae.training.fit import fit as fit

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "pyrovae.training.checkpoint",
    "Evidence": "pyrovae.results",
    "FitConfig": "pyrovae.training.fit",
    "Target": "pyrovae.target",
    "VAE": "pyrovae.models.vae",
    "audit": "pyrovae.diagnostics.audit",
    "calibrate": "pyrovae.diagnostics.calibration",
    "build_vae": "pyrovae.models.vae",
    "compare": "pyrovae.diagnostics.comparison",
    "decompose": "pyrovae.diagnostics.decomposition",
    "evidence_summary": "pyrovae.results.sandwich",
    "evidence_table": "pyrovae.diagnostics.evidence_table",
    "fit": "pyrovae.training.fit",
    "gradient_summary": "pyrovae.results.gradients",
    "gradient_statistics": "pyrovae.diagnostics.gradients",
    "inference_gaps": "pyrovae.diagnostics.gaps",
    "load": "pyrovae.training.checkpoint",
    "log_evidence": "pyrovae.diagnostics.evidence",
    "mlp": "pyrovae.models.networks",
    "read": "pyrovae.results",
    "reconstruct": "pyrovae.diagnostics.reconstruction",
    "sample_posterior": "pyrovae.diagnostics.reference",
    "simulated_gap": "pyrovae.diagnostics.simulated",
    "save": "pyrovae.training.checkpoint",
    "snr_slopes": "pyrovae.results.gradients",
    "summary": "pyrovae.results.summary",
    "verdict_sentences": "pyrovae.results.verdicts",
    "write": "pyrovae.results",
    "write_report": "pyrovae.reporting.report",
}
_MODULES = {
    "data": "pyrovae.data",
    "decoders": "pyrovae.models.decoders",
    "encoders": "pyrovae.models.encoders",
    "priors": "pyrovae.models.priors",
}

__all__ = ["__version__", *sorted({**_HOMES, **_MODULES})]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562), so that `import pyrovae` stays light."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"pyrovae has no name {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return list(__all__)
