"""lopjax: loss of plasticity, as dynamics on manifolds in parameter space (arXiv 2510.00304).

`import lopjax as lop`, then `lop.certify_cloned(...)`, `lop.models.mlp(...)`: the names are listed in `__init__.pyi`,
and what they need is imported when they are first used.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
