"""How far a model is from a symmetry, where it is lost, and which actions its outputs have; ``audit`` is the function.

The package has another name than its function, which nothing then hides.
"""

from .measuring import audit
from .records import ElementError, Finding, Fit, OutputAudit, SubmoduleAudit
from .report import Audit

__all__ = ["Audit", "ElementError", "Finding", "Fit", "OutputAudit", "SubmoduleAudit", "audit"]
