"""Properties of sampled networks, of averaged predictions, and of scores of predictions."""

from collections.abc import Callable

import numpy as np

from minires.testing import oracles
from minires.testing.judging import (
    Property,
    Summary,
    Words,
    Wrong,
    accepts,
    array_of,
    ask,
    compare,
    judge,
    show,
    strategies,
    suite_of,
)

# --- sampling ----------------------------------------------------------------------------


def check_sampler(sample: Callable) -> Summary:
    """Judge the sampling of K networks around a mean.

        def sample(mean, variance, k, rng, scale=1.0): ...    # (P,), (P,) → (K, P)

        check_sampler(sample)

    θⱼ = θ̄ + scale · σ · εⱼ with ε ~ N(0, 1) for every weight on its own. rng is a
    numpy.random.Generator. What the scale does is judged where `sample` takes an argument of that
    name. Distributions are judged by their mean and σ over 4,000 weights, within 6 standard
    errors.

    sample    the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    Source    §2 of the paper, the second approach
    """
    return judge("sampler", sampler_properties(sample))


def sampler_suite(sample: Callable) -> Callable:
    """`check_sampler` for pytest: one test a property."""
    return suite_of("sampler", sampler_properties(sample))


_MANY = 4000


def sampler_properties(sample: Callable) -> list[Property]:
    """The properties that `check_sampler` tries."""
    st = strategies()
    small = st.tuples(
        st.integers(1, 4).flatmap(
            lambda p: st.tuples(*[st.tuples(st.integers(-9, 9), st.integers(1, 9))] * p)
        ),
        st.integers(1, 4),
        st.integers(0, 9),
    )  # ((mean, variance), …), K, seed
    wide = st.tuples(st.integers(1, 9), st.integers(2, 4), st.integers(0, 9))  # σ, K, seed
    scaled = accepts(sample, "scale")

    def drawn(mean, variance, k, seed, **options):
        return drawn_by(np.random.default_rng(seed), mean, variance, k, **options)

    def drawn_by(rng, mean, variance, k, **options):
        return array_of(ask(sample, mean, variance, k, rng, **options), (k, *mean.shape))

    def parts(case):
        numbers, k, seed = case
        return np.array(numbers, float).T[0], np.array(numbers, float).T[1], k, seed

    def many(case, **options):
        sigma, k, seed = case
        yours = drawn(np.full(_MANY, 2.0), np.full(_MANY, float(sigma**2)), k, seed, **options)
        return (yours - 2.0) / sigma

    def shape(case):
        yours = drawn(*parts(case))
        if not np.isfinite(yours).all():
            return Wrong(yours, Words("finite numbers"))
        return None

    def no_noise(case):
        mean, _, k, seed = parts(case)
        yours = drawn(mean, np.zeros_like(mean), k, seed)
        return compare(yours, np.tile(mean, (k, 1)), 1e-5 * (1 + np.abs(mean)))

    def zero(case):
        mean, variance, k, seed = parts(case)
        yours = drawn(mean, variance, k, seed, scale=0.0)
        return compare(yours, np.tile(mean, (k, 1)), 1e-5 * (1 + np.abs(mean)))

    def spread(scale=None):
        def compared(case):
            options = {} if scale is None else {"scale": scale}
            spread = float(many(case, **options).std()) / (scale or 1.0)
            room = 6 / np.sqrt(2 * _MANY * case[1])
            hints = [(case[0] * 1.0, "that is multiplied by the variance: take its root, σ"),
                     (1 / np.sqrt(case[0]), "one root too many")]  # fmt: skip
            if scale:
                hints += [(1 / np.sqrt(scale), "the scale is of σ, not of σ²"),
                          (scale, "the scale is multiplied in twice")]  # fmt: skip
            own = [(v, h) for v, h in hints if abs(v - 1) > room]
            wrong = compare(spread, 1.0, room, own)
            if wrong and len(np.unique(many(case, **options)[0].round(6))) < _MANY / 2:
                wrong = Wrong(wrong.yours, wrong.right, "all weights of a member get one ε: each "
                              "needs its own, rng.standard_normal(P)")  # fmt: skip
            return wrong and Wrong(Words(f"spread {show(spread, 3)} σ"), Words("1 σ"), wrong.hint)

        return compared

    def center(case):
        yours = float(many(case).mean())
        return compare(yours, 0.0, 6 / np.sqrt(_MANY * case[1]))

    def apart(case):
        """Members of one call, and the weights of one member, have noise of their own."""
        noise = many(case)
        if np.unique(noise[0].round(6)).size < _MANY / 2:
            return Wrong(Words("one number for all weights"), Words("one for every weight"),
                         "rng.standard_normal(P), not a single number")  # fmt: skip
        relation = float(np.corrcoef(noise[0], noise[1])[0, 1])
        wrong = compare(relation, 0.0, 6 / np.sqrt(_MANY))
        return wrong and Wrong(
            Words(f"members correlate by {show(relation, 2)}"), Words("0"),
            "each member needs noise of its own",
        )  # fmt: skip

    def normal(case):
        """About 4.6 % of a normal distribution lie beyond 2σ, and 0.27 % beyond 3σ."""
        noise = np.abs(many(case))
        size = noise.size
        for far, share in ((2, 0.0455), (1, 0.3173)):
            found = float((noise > far).mean())
            if abs(found - share) > 6 * np.sqrt(share / size):
                return Wrong(Words(f"{found:.1%} beyond {far} σ"), Words(f"{share:.1%}"))
        if noise.max() < 3:  # by chance with a probability of (1 − 0.0027)^size, below 1e-9
            return Wrong(Words("nothing beyond 3 σ"), Words("0.27 %"), "do not cut the noise")
        return None

    def prefix(case):
        mean, variance, k, seed = parts(case)
        few, more = drawn(mean, variance, k, seed), drawn(mean, variance, k + 2, seed)
        return compare(more[:k], few, 1e-6 * (1 + np.abs(few)))

    def repeatable(case):
        mean, variance, k, seed = parts(case)
        return compare(drawn(mean, variance, k, seed), drawn(mean, variance, k, seed), 0)

    def fresh(case):
        mean, variance, k, seed = parts(case)
        rng = np.random.default_rng(seed)
        first, second = (drawn_by(rng, mean, variance, k) for _ in range(2))
        if np.array_equal(first, second):
            return Wrong(Words("the same networks twice"), Words("others at the second call"))
        return None

    def tell(case):
        mean, variance, k, seed = parts(case)
        return f"mean {show(mean)}, variance {show(variance)}, K {k}, seed {seed}"

    def tell_wide(case):
        sigma, k, seed = case
        return f"{_MANY:,} weights of variance {sigma**2}, K {k}, seed {seed}"

    found = [
        Property("K networks come back, (K, P)", small, shape, tell, examples=15),
        Property("variance 0 gives the mean", small, no_noise, tell,
                 "θ̄ + σ · ε", examples=15),
        Property("members spread by σ", wide, spread(), tell_wide,
                 "σ is the root of the variance", "samples", 9),
        Property("members lie around the mean", wide, center, tell_wide, "ε has mean 0",
                 "samples", 9),
        Property("ε is normal", wide, normal, tell_wide, "rng.standard_normal", "samples", 9),
        Property("every member and weight has noise of its own", wide, apart, tell_wide,
                 unit="samples", examples=9),
        Property("one seed gives the same networks again", small, repeatable, tell,
                 "take random numbers from the given `rng`, from nothing else", examples=15),
        Property("a second call gives other networks", small, fresh, tell,
                 "take random numbers from the given `rng`, from nothing else", examples=15),
        Property("member k does not depend on K", small, prefix, tell,
                 "sample member by member, each with a stream of its own: rng.spawn(K)",
                 examples=30),
    ]  # fmt: skip
    if scaled:
        found += [
            Property("scale 0 is the mean", small, zero, tell, "θ̄ + scale · σ · ε", examples=15),
            Property("a scale multiplies σ", wide, spread(4.0), tell_wide,
                     "the scale is of σ, not of σ²", "samples", 9),
        ]  # fmt: skip
    return found


# --- averaging ---------------------------------------------------------------------------

RULES = ("probabilities", "geometric", "logits", "vote")
_RULE_HINTS = {
    "probabilities": "that is the mean of the probabilities: another rule",
    "geometric": "that is the mean of the logarithms (of the logits): another rule",
    "vote": "that counts votes, one for each network: another rule",
}


def check_average(f: Callable, rule: str = "probabilities") -> Summary:
    """Judge one prediction made from those of K networks.

        def average(probabilities): ...      # (K, N, C) → (N, C)

        check_average(average)

    f         the code to be judged, as above
    rule      "probabilities": Σ p_k / K. "geometric" or "logits": softmax(Σ log p_k / K), which are
              the same. "vote": the share of networks that choose each class
    Returns   Summary
    Raises    Falsified; ValueError for another rule
    """
    return judge(f"average {rule}", average_properties(f, rule))


def average_suite(f: Callable, rule: str = "probabilities") -> Callable:
    """`check_average` for pytest: one test a property."""
    return suite_of(f"average {rule}", average_properties(f, rule))


def average_properties(f: Callable, rule: str) -> list[Property]:
    """The properties that `check_average` tries."""
    if rule not in RULES:
        raise ValueError(f"check_average: rule is {rule!r}, expected one of {', '.join(RULES)}")
    st = strategies()

    def cases(least=1, most=4):
        # Rows of different whole numbers, made to sum to one: no ties, no zeros.
        return st.tuples(st.integers(2, 3), st.integers(1, 2), st.integers(least, most)).flatmap(
            lambda sizes: st.tuples(
                *[st.tuples(*[st.permutations([1, 2, 6][: sizes[0]]).map(tuple)] * sizes[1])]
                * sizes[2]
            )
        )

    def p_of(case):
        numbers = np.array(case, float)
        return numbers / numbers.sum(axis=-1, keepdims=True)

    def outcome(case):
        p = p_of(case)
        right = oracles.average(p, rule)
        hints = [
            (p[0], "only the first network counts"),
            (p.sum(axis=0), "that is the sum: divide by K"),
        ]
        hints += [
            (oracles.average(p, other), _RULE_HINTS[other])
            for other in ("probabilities", "geometric", "vote")
            if other != rule
        ]
        return compare(ask(f, p), right, 1e-5, hints)

    def sums(case):
        yours = array_of(ask(f, p_of(case)), np.shape(case)[1:])
        return compare(yours.sum(axis=-1), np.ones(len(yours)), 1e-5)

    def order(case):
        p = p_of(case)
        return compare(ask(f, p[::-1]), array_of(ask(f, p)), 1e-5)

    def tell(case):
        return f"probabilities {np.round(p_of(case), 3).tolist()}"

    formula = {
        "probabilities": "Σ p_k / K, over the first axis",
        "vote": "the mean over the networks of [c = argmax p_k]",
    }.get(rule, "softmax of the mean of log p_k")
    return [
        Property("one network: " + ("its choice" if rule == "vote" else "as it is"), cases(1, 1),
                 outcome, tell, formula, examples=20),
        Property("several networks: the definition", cases(2), outcome, tell, formula),
        Property("the result sums to one", cases(), sums, tell, formula, examples=30),
        Property("the order of the networks does not matter", cases(2), order, tell, formula,
                 examples=20),
    ]  # fmt: skip


# --- metrics -----------------------------------------------------------------------------

METRICS = ("accuracy", "nll", "brier", "ece")


def check_metric(f: Callable, kind: str) -> Summary:
    """Judge a number that says how good predicted probabilities are.

        def nll(probabilities, labels): ...      # (N, C) float, (N,) integers → a number

        check_metric(nll, "nll")

    "accuracy"  the share of rows whose largest probability is at the label
    "nll"       the mean of −ln p(label)
    "brier"     Σ_c (p_c − [c = label])², the mean over the rows
    "ece"       Σ_b |B_b|/N · |mean confidence − accuracy| over 15 equal bins, each closed on the
                right: (b/15, (b+1)/15]. With an argument `bins`, other numbers are tried too

    f         the code to be judged, as above
    kind      one of the four
    Returns   Summary
    Raises    Falsified; ValueError for another kind
    Source    Brier 1950; Guo et al. 2017, arXiv:1706.04599, eq. 3
    """
    return judge(f"metric {kind}", metric_properties(f, kind))


def metric_suite(f: Callable, kind: str) -> Callable:
    """`check_metric` for pytest: one test a property."""
    return suite_of(f"metric {kind}", metric_properties(f, kind))


def _edges(bins):
    """Confidences k/bins at which every way of writing the edge gives the same float."""
    line = np.linspace(0, 1, bins + 1)
    return [
        k
        for k in range(1, bins)
        if k / bins == line[k] == k * (1 / bins) and (k / bins) * bins == k and 2 * k > bins
    ]


def metric_properties(f: Callable, kind: str) -> list[Property]:
    """The properties that `check_metric` tries."""
    if kind not in METRICS:
        raise ValueError(f"check_metric: kind is {kind!r}, expected one of {', '.join(METRICS)}")
    st = strategies()

    def batches(least=1, most=5):
        # Each row: different whole numbers in some order, out of 16 or 20, and a label.
        rows = {2: [(3, 13), (7, 9), (1, 15)], 3: [(1, 4, 11), (2, 3, 15), (4, 5, 7)]}
        return st.integers(2, 3).flatmap(
            lambda c: st.lists(
                st.tuples(
                    st.sampled_from(rows[c]).flatmap(st.permutations).map(tuple),
                    st.integers(0, c - 1),
                ),
                min_size=least,
                max_size=most,
            ).map(tuple)
        )

    def data(case):
        numbers = np.array([row for row, _ in case], float)
        p = numbers / numbers.sum(axis=-1, keepdims=True)
        return p, np.array([label for _, label in case])

    def hints(p, labels):
        n, c = p.shape
        picked = p[np.arange(n), labels]
        onehot = labels[:, None] == np.arange(c)
        if kind == "nll":
            return [
                (-np.log(picked).sum(), "that is the sum: divide by the number of rows"),
                (-np.log(picked).sum() / p.size, "the mean is over the rows, not the classes too"),
                (np.log(picked).mean(), "the sign: −ln p"),
                (-np.log2(picked).mean(), "the natural logarithm, not that of base 2"),
                (-np.log(p.max(axis=1)).mean(), "p of the label, not the largest p"),
                (-np.log(p[:, 0]).mean(), "p of each row's own label, not of class 0"),
            ]
        if kind == "brier":
            return [
                (((p - onehot) ** 2).mean(), "the sum over the classes, not their mean"),
                (((p - onehot) ** 2).sum(), "the mean over the rows, not their sum"),
                (((picked - 1) ** 2).mean(), "over all classes, not the label's only"),
            ]
        if kind == "accuracy":
            right = p.argmax(axis=1) == labels
            return [
                (1 - right.mean(), "that is the error rate"),
                (right.sum(), "divide by the number of rows"),
            ]
        correct = p.argmax(axis=1) == labels
        return [(abs(p.max(axis=1).mean() - correct.mean()),
                 "bins: gaps of opposite signs must not cancel across them")]  # fmt: skip

    def outcome(bins=None):
        def compared(case):
            p, labels = data(case)
            options = {} if bins is None else {"bins": bins}
            right = oracles.metric(kind, p, labels, **options)
            yours = array_of(ask(f, p, labels, **options), (), "a number")
            return compare(yours, right, 1e-5 * (1 + abs(right)), hints(p, labels))

        return compared

    def tell(case):
        p, labels = data(case)
        return f"probabilities {np.round(p, 4).tolist()}, labels {labels.tolist()}"

    formula = {
        "accuracy": "the mean of [argmax p = label]",
        "nll": "−(1/N) Σ ln p[n, label_n]",
        "brier": "(1/N) Σ_n Σ_c (p[n, c] − [c = label_n])²",
        "ece": "Σ_b |B_b|/N · |mean confidence in b − accuracy in b|",
    }[kind]
    found = [
        Property("one row: the definition", batches(1, 1), outcome(), tell, formula, examples=30),
        Property("several rows: the definition", batches(2), outcome(), tell, formula,
                 examples=50),
    ]  # fmt: skip

    def shuffled(case):
        p, labels = data(case)
        return compare(ask(f, p[::-1], labels[::-1]), array_of(ask(f, p, labels), ()), 1e-5)

    found.append(
        Property("the order of the rows does not matter", batches(2), shuffled, tell, formula,
                 examples=20)
    )  # fmt: skip
    if kind == "ece":
        found += _edge_properties(f, st)
        if accepts(f, "bins"):
            found.append(
                Property("another number of bins", batches(2), outcome(4), lambda case:
                         tell(case) + ", bins 4", formula, examples=60)
            )  # fmt: skip
    return found


def _edge_properties(f, st):
    """A confidence at the edge of two bins belongs to the lower one."""
    own_bins = 4 if accepts(f, "bins") else 15
    options = {"bins": own_bins} if own_bins == 4 else {}

    def data(case):
        edge, inside, right = case
        p = np.array([[edge, 1 - edge], [inside, 1 - inside]])
        return p, np.array([0 if right else 1, 1 if right else 0])

    def outcome(case):
        p, labels = data(case)
        right = oracles.metric("ece", p, labels, own_bins)
        return compare(ask(f, p, labels, **options), right, 1e-6)

    def tell(case):
        p, labels = data(case)
        words = f"probabilities {p.round(4).tolist()}, labels {labels.tolist()}"
        return words + (f", bins {own_bins}" if options else "")

    cases = tuple(
        (k / own_bins, (k + side) / own_bins, right)
        for k in _edges(own_bins)
        for side in (-0.25, 0.25)
        for right in (True, False)
    )
    return [
        Property("bins are closed on the right", cases, outcome, tell,
                 "a confidence of exactly (b + 1)/bins belongs to bin b: (b/bins, (b + 1)/bins]")
    ]  # fmt: skip
