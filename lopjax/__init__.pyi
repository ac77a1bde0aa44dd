# The public names of `import lopjax as lop`, and where they live. Each is imported when it is first used.

from . import (
    certificates as certificates,
    cloning as cloning,
    curvature as curvature,
    data as data,
    detection as detection,
    doctor as doctor,
    interventions as interventions,
    losses as losses,
    manifolds as manifolds,
    metrics as metrics,
    models as models,
    optim as optim,
    probes as probes,
    recovery as recovery,
    runs as runs,
    signals as signals,
    stability as stability,
    testing as testing,
    theory as theory,
    tracing as tracing,
    training as training,
    wiring as wiring,
)
from .certificates import (
    CloneVerdict as CloneVerdict,
    FrozenVerdict as FrozenVerdict,
    WeightedVerdict as WeightedVerdict,
    certify_cloned as certify_cloned,
    certify_frozen as certify_frozen,
    certify_weighted as certify_weighted,
)
from .cloning import (
    clone_variables as clone_variables,
    collapse as collapse,
    find_clones as find_clones,
    uniform_partition as uniform_partition,
    widen as widen,
)
from .detection import clone_distances as clone_distances, near_clones as near_clones, unit_nearness as unit_nearness
from .doctor import diagnose as diagnose
from .manifolds import (
    cloned_manifold as cloned_manifold,
    distance as distance,
    frozen_manifold as frozen_manifold,
    functional_codimension as functional_codimension,
    tangency_residual as tangency_residual,
    weighted_manifold as weighted_manifold,
)
from .model import Model as Model, Output as Output, Tap as Tap
from .models import (
    check_wiring as check_wiring,
    cnn as cnn,
    from_linen as from_linen,
    gpt as gpt,
    mlp as mlp,
    resnet18 as resnet18,
    vit as vit,
)
from .probes import symptoms as symptoms
from .recovery import monitor as monitor, recovery_controller as recovery_controller
from .signals import Observed as Observed, observe as observe
from .stability import (
    Stability as Stability,
    classify as classify,
    critical_weight_decay as critical_weight_decay,
    escape_time as escape_time,
    free_kick as free_kick,
    transverse_lyapunov as transverse_lyapunov,
    unit_blocks as unit_blocks,
    unit_blocks_of_clones as unit_blocks_of_clones,
)
from .tracing import trace_model as trace_model
from .wiring import In as In, Out as Out, Wiring as Wiring

__version__: str
