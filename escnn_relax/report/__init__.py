"""What each layer learned: records, a table, a heat map (layers x irreps)."""

from .model_report import Report, report
from .records import LayerReport, PathwayReport

__all__ = ["LayerReport", "PathwayReport", "Report", "report"]
