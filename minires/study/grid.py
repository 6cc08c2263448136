"""What the study computes: cells, and the profiles that list them.

A cell is one training run: a pre-training, or a fine-tuning that starts from one. All fine-tunings
with the same (optimizer, ℓ₁, dropout, seed) start from the same pre-training, as in the paper. A
profile is a few lists of rates; its cells are all combinations.
"""

import inspect
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from minires.networks import NETWORKS

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
ADAM_RATE = 1e-3  # the default of TensorFlow 1.8, which the paper used
MEMBERS = 10  # networks in the large ensemble


class Setting(NamedTuple):
    """What cells share that differ only in their seed; the fields are those of `Cell`."""

    optimizer: str
    l1: float
    dropout: float
    finetune_optimizer: str | None = None
    l2: float | None = None

    @property
    def rates(self) -> tuple:
        """The optimizers and learning rates: everything but the dropout."""
        return self.optimizer, self.l1, self.finetune_optimizer, self.l2

    @property
    def order(self) -> tuple:
        """The sort key of figures and tables: by optimizer and rates, then the largest dropout."""
        then = self.finetune_optimizer or "", self.l2 or 0
        return self.optimizer == "adam", self.l1, *then, -self.dropout


@dataclass(frozen=True)
class Cell:
    """One training run, named by everything that makes it different from the others.

    optimizer            of the pre-training, "sgd" or "adam"
    l1                   ℓ₁, its rate
    dropout              share of the hidden units dropped, in both phases
    seed                 of the weights, the order of images and the dropout
    finetune_optimizer   "sgd", "adam", or None: the cell is the pre-training itself
    l2                   ℓ₂, the rate of the fine-tuning, or None likewise
    """

    optimizer: str
    l1: float
    dropout: float
    seed: int
    finetune_optimizer: str | None = None
    l2: float | None = None

    @property
    def pretraining(self) -> "Cell":
        """The cell that this one starts from; for a pre-training, the cell itself."""
        return replace(self, finetune_optimizer=None, l2=None)

    @property
    def is_pretraining(self) -> bool:
        """Whether the cell is a pre-training."""
        return self.finetune_optimizer is None

    @property
    def setting(self) -> Setting:
        """The cell without its seed."""
        return Setting(self.optimizer, self.l1, self.dropout, self.finetune_optimizer, self.l2)

    @property
    def key(self) -> str:
        """A name for files: "sgd_0.2_dropout_0.5_seed_0_then_sgd_0.15"."""
        name = (
            f"{self.optimizer}_{float(self.l1)!r}_dropout_{float(self.dropout)!r}_seed_{self.seed}"
        )
        return (
            name
            if self.is_pretraining
            else f"{name}_then_{self.finetune_optimizer}_{float(self.l2)!r}"
        )

    @property
    def order(self) -> tuple:
        """The sort key of cells. Seeds come first, so that a stopped sweep has complete seeds."""
        after = () if self.is_pretraining else (self.finetune_optimizer == "adam", self.l2)
        return self.seed, self.optimizer == "adam", self.l1, self.dropout, after


@dataclass(frozen=True)
class Profile:
    """The lists that make a grid, and the settings that all its cells share.

    name             what it is called on the command line
    data             "glyphs" or "mnist"
    network          a name in `minires.networks.NETWORKS`
    options          arguments for it, such as {"channels": (8, 16)}
    inputs           how grey levels 0 … 255 are scaled: "[-1, 1]", "[0, 1]", or "standardised" to
                     mean 0 and standard deviation 1 over the training images
    train, test      how many images (None: all)
    epochs           of pre-training
    updates          of fine-tuning
    batch            images in a mini-batch
    seeds            how many repeats, from seed 0
    l1               rates ℓ₁ of pre-training by SGD that are fine-tuned (Fig. 1)
    l1_outside       rates of pre-trainings without fine-tuning, with dropout: they show whether the
                     range of l1 is well chosen
    l2               rates ℓ₂ of fine-tuning by SGD
    dropout          shares of dropped units
    adam             whether to pre-train by Adam too (Fig. 2)
    baselines        rates ℓ₂ at which the other methods are measured, too
    curves           rates ℓ₂ at which curves are measured, and a portrait of the first seed. For
                     baselines and curves only cells with SGD, dropout and the ℓ₁ nearest to 0.2
    """

    name: str
    data: str
    network: str = "lenet"
    options: dict = field(default_factory=dict)
    inputs: str = "[-1, 1]"
    train: int | None = None
    test: int | None = None
    epochs: int = 2
    updates: int = 500
    batch: int = 128
    seeds: int = 10
    l1: tuple = (0.15, 0.2, 0.25, 0.3)
    l1_outside: tuple = (0.05, 0.6)
    l2: tuple = (0.05, 0.1, 0.15, 0.2, 0.25)
    dropout: tuple = (0.0, 0.5)
    adam: bool = True
    baselines: tuple = (0.05, 0.15, 0.25)
    curves: tuple = (0.15,)

    def __post_init__(self):
        for name in ("epochs", "updates", "batch", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.baselines and self.updates < 2:
            raise ValueError("updates is 1, expected 2 or more (--updates): SWAG needs two")
        if self.network not in NETWORKS:
            raise ValueError(f"network is {self.network!r}, there are {', '.join(NETWORKS)}")

    def cells(self) -> list[Cell]:
        """Every cell, in the order of the work; a pre-training comes before its fine-tunings."""
        found = set()
        for seed in range(self.seeds):
            for dropout in self.dropout:
                starts = [Cell("sgd", l1, dropout, seed) for l1 in self.l1]
                if self.adam:
                    starts.append(Cell("adam", ADAM_RATE, dropout, seed))
                for start in starts:
                    found.add(start)
                    found |= {replace(start, finetune_optimizer="sgd", l2=l2) for l2 in self.l2}
                if self.adam:
                    found.add(replace(starts[-1], finetune_optimizer="adam", l2=ADAM_RATE))
            found |= {Cell("sgd", l1, max(self.dropout), seed) for l1 in self.l1_outside}
        return sorted(found, key=lambda cell: cell.order)

    def parts(self, cell: Cell) -> frozenset:
        """What a cell measures besides the paper's methods.

        Returns  a frozenset of "baselines", "curves" and "portrait"
        """
        showcase = (
            cell.optimizer == cell.finetune_optimizer == "sgd"
            and cell.l1 == nearest(self.l1, 0.2)
            and cell.dropout == max(self.dropout)
        )
        wanted = {
            "baselines": cell.l2 in self.baselines,
            "curves": cell.l2 in self.curves,
            "portrait": cell.seed == 0 and cell.l2 in self.curves[:1],
        }
        return frozenset(name for name, holds in wanted.items() if showcase and holds)

    def model(self, dropout: float, input_shape: tuple) -> Any:
        """The network, for images of one shape.

        dropout       share of the hidden units dropped
        input_shape   (H, W, C)
        Raises        ValueError for an option that the network does not have, or with batch norm
        """
        make = NETWORKS[self.network]
        options = {"dropout": dropout, "input_shape": input_shape, "classes": 10, **self.options}
        unknown = set(self.options) - set(inspect.signature(make).parameters)
        if unknown:
            raise ValueError(f"{self.network} has no option {', '.join(sorted(unknown))}")
        model = make(**options)
        if model.stats_size:
            raise ValueError(f"{self.network} has batch norm: the study has only plain networks")
        return model

    def settings(self) -> dict:
        """All that a result depends on, for JSON; not the seeds: more of them change no cell."""
        settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in ("name", "network", "options", "seeds")
        }
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()}
        network = {"name": self.network, **options}
        return {"profile": self.name, "network": network, "members": MEMBERS, **settings}


def nearest(values: Iterable[float], wanted: float) -> float:
    """The one of some values that is nearest to a wanted number.

    values   to choose from
    wanted   the number
    """
    return min(values, key=lambda value: (abs(value - wanted), value))


TESTING = {"smoke"}  # profiles that only show that everything works, and are too small to judge
SMOKE = Profile(
    "smoke",
    "glyphs",
    options={"channels": (4, 8), "hidden": 64},
    train=2_000,
    test=500,
    updates=30,
    seeds=2,
    l1=(0.2,),
    l1_outside=(0.05,),
    l2=(0.05, 0.25),
    baselines=(0.25,),
    curves=(0.25,),
)
# A class of an hour has no time for both figures. Without Adam there is time for enough seeds to
# give verdicts. Batches of 64 make twice as many updates in the same time, and noisier ones: so
# there is more to average.
CLASS = Profile(
    "class",
    "glyphs",
    options={"channels": (4, 8), "hidden": 64},
    train=10_000,
    test=2_000,
    updates=160,
    batch=64,
    seeds=8,
    l1=(0.15, 0.3),
    l2=(0.05, 0.25),
    adam=False,
    baselines=(0.25,),
    curves=(0.25,),
)
LITE = Profile(
    "lite",
    "mnist",
    options={"channels": (4, 8), "hidden": 256},
    l1=(0.15, 0.3),
    l2=(0.05, 0.15, 0.25),
    baselines=(0.15,),
    curves=(0.15,),
)
FULL = Profile("full", "mnist")
PROFILES = {profile.name: profile for profile in (SMOKE, CLASS, LITE, FULL)}


# --- which LeNet was the paper's? -----------------------------------------------------------

TRIED_L1, TRIED_L2 = 0.2, 0.15
OUTSIDE = (0.05, 0.6)  # rates ℓ₁ outside the paper's range, for claim C1


@dataclass(frozen=True)
class Candidate(Profile):
    """A network that may have been the paper's: a Profile of very few cells."""

    data: str = "mnist"
    l1: tuple = (TRIED_L1,)
    l1_outside: tuple = ()
    l2: tuple = (TRIED_L2,)
    seeds: int = 1
    baselines: tuple = ()
    curves: tuple = ()

    def cells(self) -> list[Cell]:
        """Pre-training and fine-tuning both by SGD, and both by Adam; with and without dropout."""
        found = set()
        for seed in range(self.seeds):
            for dropout in self.dropout:
                for optimizer, l1, l2 in (
                    ("sgd", TRIED_L1, TRIED_L2),
                    ("adam", ADAM_RATE, ADAM_RATE),
                ):
                    start = Cell(optimizer, l1, dropout, seed)
                    found |= {start, replace(start, finetune_optimizer=optimizer, l2=l2)}
            found |= {Cell("sgd", l1, max(self.dropout), seed) for l1 in self.l1_outside}
        return sorted(found, key=lambda cell: cell.order)

    def parts(self, cell: Cell) -> frozenset:
        """Nothing besides the paper's methods."""
        return frozenset()


CANDIDATES = (
    Candidate("slim-1024"),
    Candidate("slim-512", options={"hidden": 512}),
    Candidate("20-50-500", options={"channels": (20, 50), "hidden": 500}),
    Candidate("6-16-120-84", network="lenet_classic"),
    Candidate("slim-1024-he", options={"initializer": "he"}),
    Candidate("slim-1024-truncated-normal", options={"initializer": "truncated_normal"}),
    Candidate("slim-1024-inputs-0-1", inputs="[0, 1]"),
    Candidate("slim-1024-inputs-standardised", inputs="standardised"),
)
