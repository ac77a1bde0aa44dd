"""What the paper claims, and what became of each claim here. `theory_checks/paper.py` makes a page of it.

A claim rests on checks and on cells of the tables in the pages of the experiments.
"""

from typing import NamedTuple

STATUSES = {
    "reproduced": "holds as stated",
    "corrected": "holds after a change that is named, or under a condition that the paper leaves out",
    "refuted": "does not hold as stated; the counterexample is named",
    "answered": "a question that the paper leaves open, and an answer",
    "open": "not decided here, and why",
}


class Cell(NamedTuple):
    """A cell of a table in a page: the row by its first cell, the column by its number from 0."""

    page: str
    row: str
    column: int


class Claim(NamedTuple):
    """One theorem, figure or claim: where it stands, what it says, what became of it, and on what evidence."""

    place: str
    says: str
    status: str
    found: str
    checks: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()
    page: str = ""
    command: str = ""


CONTINUAL, CLONING, ESCAPE = "continual.md", "cloning.md", "escape.md"
RANK, BEYOND, FORMATION = "rank_causality.md", "beyond_images.md", "formation.md"
GAUSSIAN = "python -m experiments.continual --seeds 0 1 2 3 4 --l2-init 0.01 --weight-decay 0.1 --name gaussian5"
TINY = "python -m experiments.continual --preset reference --seeds 0 1 2 3 4 --fresh-every 8 --data-dir DATA"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "section 4, definition of the manifolds",
        "Training that starts on a manifold to which every gradient is tangent stays on it.",
        "corrected",
        "Gradient flow does. A step of gradient descent stays exactly on affine manifolds only; from curved ones it "
        "drifts by a known amount at second order.",
        ("confinement.sgd", "conserved.homogeneous"),
    ),
    Claim(
        "section 4, frozen units",
        "Units that are saturated on all data have no gradient, and stay so.",
        "corrected",
        "This is true of the first layer on fixed data. A deeper unit can be woken by the layers below; saturated"
        " smooth units are slow, but not frozen.",
        ("frozen.gradient", "frozen.training"),
    ),
    Claim(
        "proposition 4.1, appendix A.2",
        "Units with equal incoming and outgoing block sums have equal forward and backward signals, and the "
        "gradient is block-constant.",
        "reproduced",
        "Also for unequal clusters, convolutions, residual streams, attention and norms.",
        ("cloning.forward", "cloning.backward", "cloning.tangency"),
    ),
    Claim(
        "section 4, corollary of proposition 4.1",
        "SGD on any sequence of batches stays on the manifold of clones.",
        "reproduced",
        "This holds in exact arithmetic; rounding errors leave the manifold where curvature amplifies them.",
        ("confinement.sgd", "confinement.architectures", "confinement.rounding"),
    ),
    Claim(
        "section 4, cloning a network",
        "A network of which every unit is cloned computes the same function.",
        "corrected",
        "With weights divided along input axes. The authors' code doubles the width of attention heads without "
        "rescaling, which changes the logits by √2: here heads are cloned, not their width.",
        ("cloning.same_function",),
    ),
    Claim(
        "section 4, definition 4",
        "A manifold is stable, unstable or a saddle by the curvature across it.",
        "corrected",
        "Across clones the Hessian has a zero block, so it is never definite: neither stable nor unstable can occur "
        "there. Across dead units it is zero.",
        ("flatness.outgoing", "frozen.hessian"),
    ),
    Claim(
        "section 4, open question",
        "Which conditions of architecture and data decide stability?",
        "answered",
        "The normal Hessian decomposes into one small block for each unit of the base network, in closed form.",
        ("stability.closed_form", "stability.inertia", "stability.relu_symmetry", "stability.weight_decay"),
        page="stability.md",
    ),
    Claim(
        "section 4, open question",
        "For which optimizers other than SGD do clones stay clones?",
        "answered",
        "For all optimizers whose update is computed from the history of gradients alone; the checks list what decay,"
        " clipping and resets keep.",
        ("optimizers.gradient_history", "optimizers.weight_decay", "optimizers.coupled_decay", "resets.live_clones"),
    ),
    Claim(
        "section 4, open question",
        "Are there other manifolds that trap training, also curved ones?",
        "answered",
        "For a given network the rank of a Lie algebra decides this. There are level sets of conserved quantities, and"
        " affine families that the paper does not list (weighted and signed clones, vanished units, rotated heads).",
        ("lie_rank.conserved", "lie_rank.generic", "other_clones.weighted", "symmetry.heads"),
    ),
    Claim(
        "section 4, rank recovery",
        "An activation multiplies the distance of correlations from 1 by 1 + α.",
        "reproduced",
        "At first order.",
        ("activation.expansion", "activation.fixed_points"),
    ),
    Claim(
        "section 4, values of α",
        "α is 0.5, 0.6667, 0.5449 for ReLU, tanh, GELU.",
        "refuted",
        "It is 0, 0.177807, 0.072032 (uncentred), or 0.466942, 0.177807, 0.318845 (centred).",
        ("activation.alpha_values",),
    ),
    Claim(
        "section 4, hard rank (figure A.1)",
        "After a function that is not a polynomial, units that are not copies have full rank.",
        "corrected",
        "Pairs of opposite units lose rank after ReLU and its relatives, by a known number.",
        ("activation.hard_rank", "activation.opposite_units"),
        page="theory/activation.md",
        command="python -m experiments.activation_theory",
    ),
    Claim(
        "section 4 and appendix A, effective rank (figure A.2)",
        "The effective rank grows by 1 + αε.",
        "refuted",
        "The formula lacks the factor ln(n/ε). The appendix's form is the leading logarithm; a corrected one is exact"
        " at leading order.",
        ("activation.effective_rank",),
        page="theory/activation.md",
        command="python -m experiments.activation_theory",
    ),
    Claim(
        "section 4, corollary (figures A.3, A.4)",
        "α → ∞ freezes units.",
        "refuted",
        "sin(30z) has α = 899 and hardly any frozen unit. True for activations with plateaus, and for half-vanishing "
        "ones.",
        ("activation.frozen_limits",),
        page="theory/activation.md",
        command="python -m experiments.activation_theory",
    ),
    Claim(
        "section 5, noise and dropout",
        "Noise on weights and dropout break the symmetry of clones.",
        "reproduced",
        "Noise starts the escape; curvature times learning rate continues it. Whether noise repels on average is known"
        " exactly for isotropic noise.",
        ("breakers.single_updates", "stability.noise_that_repels"),
    ),
    Claim(
        "section 5, correlations",
        "Learning pushes correlations of units towards 0 or 1.",
        "open",
        "Not seen: on one network (5 × 64 ReLU on digits) they are less polarised after training than before; copies "
        "appear early and mostly separate. One seed.",
        ("activation.correlation_probe",),
        page="theory/activation.md",
        command="python -m experiments.activation_theory",
    ),
    Claim(
        "figures 2.1, C.5 to C.11",
        "Under SGD and Adam clones stay equal; under noise and dropout they leave, and the rank rises.",
        "reproduced",
        "R² at the end, CNN: SGD, Adam, noise, dropout. The MLP on CIFAR-10 was compared with curves of the "
        "authors' code.",
        cells=tuple(Cell(CLONING, "CNN", column) for column in (1, 2, 3, 4)),
        page=CLONING,
        command="python -m experiments.cloning --model cnn",
    ),
    Claim(
        "figures C.5 to C.11, ViT",
        "A ViT leaves the manifold, but not far.",
        "corrected",
        "This happens where the ViT hardly trains. At a learning rate at which it trains, its clones escape: R² under"
        " noise, and under dropout.",
        cells=(Cell(CLONING, "ViT", 3), Cell(CLONING, "ViT", 4)),
        page=CLONING,
        command="python -m experiments.cloning --model vit",
    ),
    Claim(
        "section 5, open question",
        "Time scale and success probability of the escape.",
        "answered",
        "In the linear regime at a critical base, distribution and rate are exact. How far this carries over to the"
        " training of real networks is an experiment of its own.",
        ("stability.escape_rate", "escape.momentum", "escape.decaying_noise", "escape.rank_ceiling"),
        page="escape.md",
    ),
    Claim(
        "section 3, figure 3.1",
        "Plasticity is lost over the tasks.",
        "reproduced",
        "Mixtures of Gaussians; Tiny ImageNet without norm; random labels on digits.",
        cells=tuple(Cell(CONTINUAL, "plasticity is lost", column) for column in (1, 2, 3)),
        page=CONTINUAL,
        command=GAUSSIAN,
    ),
    Claim(
        "section 3, figures 3.2 and 3.3",
        "The rank falls before the accuracy does.",
        "corrected",
        "On one stream of three it falls before accuracy or with it, but there it also falls where nothing is lost.",
        cells=tuple(Cell(CONTINUAL, "rank falls before accuracy", column) for column in (1, 2, 3)),
        page=CONTINUAL,
        command=GAUSSIAN,
    ),
    Claim(
        "section 3, dead units",
        "Dead units grow with the loss of plasticity.",
        "corrected",
        "With ReLU, where they come before the loss; a tanh network loses without them, and with layer norm units die "
        "without loss.",
        cells=tuple(Cell(CONTINUAL, "dead units drive it", column) for column in (1, 2, 3)),
        page=CONTINUAL,
        command=TINY,
    ),
    Claim(
        "section 3, duplicate units",
        "Units become clones.",
        "corrected",
        "On one stream of three.",
        cells=tuple(Cell(CONTINUAL, "units become clones", column) for column in (1, 2, 3)),
        page=CONTINUAL,
        command=GAUSSIAN,
    ),
    Claim(
        "section 3, figure 3.4",
        "Normalisation prevents it.",
        "corrected",
        "With batch norm on these three streams, with layer norm on two. On a fourth, permuted pixels, networks with "
        "either lose online accuracy all the same.",
        cells=tuple(Cell(CONTINUAL, "normalisation prevents it", column) for column in (1, 2, 3)),
        page=CONTINUAL,
        command=f"{TINY} --net.norm batch --name batch",
    ),
    Claim(
        "discussion",
        "Is the capacity to explore fully restored after an escape?",
        "answered",
        "On the next task most of it is; on the clones' own task it is not, compared with the total budget (one"
        " network on digits, ten seeds; compared with a newly drawn network). On coarse CIFAR-10 all of it is restored"
        " by noise that dies away, and not by noise that stays. To first order, a free kick and one step restore a"
        " bounded number of dimensions.",
        ("escape.rank_ceiling",),
        cells=(Cell(ESCAPE, "clone, noise", 3), Cell(ESCAPE, "clone, noise", 9)),
        page=ESCAPE,
        command="python -m experiments.aftermath",
    ),
    Claim(
        "discussion",
        "Is the loss of rank a cause of the loss of plasticity?",
        "answered",
        "Rank at the start is neither sufficient nor necessary: raising it inside a trap does not help, while freeing"
        " the units at the same rank does (difference in loss on the next task, tanh, 12-12 units).",
        cells=(Cell(RANK, "woken, moving as clones do (cloned)", 2), Cell(RANK, "clones split (dead units added)", 2)),
        page=RANK,
        command="python -m experiments.rank_causality --preset paper",
    ),
    Claim(
        "discussion",
        "Does all this carry over to other domains?",
        "answered",
        "A small language model on permuted words loses plasticity at Adam's rate of 0.003 (growth of the loss over"
        " tasks), which at 0.001 is not seen. PPO under"
        " drifting gravity shows no loss in twelve tasks, nor in thirty; under shifted observations it falls behind"
        " (return, late minus early).",
        cells=(Cell(BEYOND, "Adam", 2), Cell(BEYOND, "plain", 4), Cell(BEYOND, "plain Adam", 4)),
        page=BEYOND,
        command="python -m experiments.language --preset permuted_words",
    ),
    Claim(
        "discussion",
        "What improves generalisation costs plasticity.",
        "corrected",
        "No trade-off was seen, in one sweep on digits: the decay that generalises best brings units nearer to clones "
        "and was not seen to slow the next task (difference to no decay, tanh); more decay makes both worse.",
        cells=tuple(Cell(FORMATION, "tanh", column) for column in (3, 4, 5)),
        page=FORMATION,
        command="python -m experiments.generalisation",
    ),
)
