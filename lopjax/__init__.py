"""lopjax: loss of plasticity, as dynamics on manifolds in parameter space (arXiv 2510.00304)."""

__version__ = "0.1.0"
