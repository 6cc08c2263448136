"""How a property is tried on somebody's code, and how the result is said.

A *property* is a sentence that must hold for every input. Hypothesis makes inputs, the judged code
answers, and the answer is compared with the right one. When they differ, Hypothesis looks for the
smallest input that still shows the difference, and `Falsified` says it in three lines:

    ✗ a constant stream has variance 0
        smallest counterexample: updates [0.1, 0.1, 0.1]    yours: 1.73e-18    right: 0
        E[x²] − E[x]² subtracts two nearly equal numbers: sum up squared differences instead

The inputs are the same on every machine and at every run: a red test is a changed program.
"""

import contextlib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_CALLS = 1200  # inputs tried for one property, those of the search for a small one included


@dataclass(frozen=True)
class Wrong:
    """An answer that is not right: what came, what should have come, and what may be the cause."""

    yours: Any
    right: Any
    hint: str | tuple[str, ...] = ""  # several: each known mistake that gives this very answer
    cause: BaseException | None = None


@dataclass(frozen=True)
class Property:
    """A sentence, the inputs it is tried on, and the comparison.

    name      the sentence
    cases     a Hypothesis strategy of hashable inputs, or a tuple of fixed inputs
    outcome   case → None when the sentence holds, Wrong when it does not
    tell      case → the input in words
    hint      what to look at when it fails, where `outcome` knows nothing better
    unit      what one input is called, in the plural
    examples  how many inputs are tried
    """

    name: str
    cases: Any
    outcome: Callable[[Any], Wrong | None]
    tell: Callable[[Any], str]
    hint: str = ""
    unit: str = "inputs"
    examples: int = 30


class Misfit(Exception):
    """The judged code returned something that is no answer at all, such as None.

    yours   what was returned
    right   in words, what is expected
    hint    what may be the cause
    """

    def __init__(self, yours: Any, right: Any, hint: str = ""):
        super().__init__(yours, right)
        self.yours, self.right, self.hint = yours, right, hint


@dataclass(frozen=True)
class Failure:
    """One property that does not hold, with the smallest input found."""

    name: str
    case: str
    yours: str
    right: str
    hint: str
    cause: BaseException | None = None

    def __str__(self):
        lines = [
            f"✗ {self.name}",
            f"    smallest counterexample: {self.case}"
            f"    yours: {self.yours}    right: {self.right}",
        ]
        return "\n".join(lines + [f"    {self.hint}"] * bool(self.hint))


@dataclass(frozen=True)
class Summary:
    """What `check_…` returns when every property holds. `str` and `repr` are the ✓ lines.

    kind   the name of the property set, such as "moments"
    held   the properties that hold, each with the number of inputs it was tried on
    """

    kind: str
    held: tuple[str, ...]

    def __str__(self):
        return readable(_ticks(self.held))

    __repr__ = __str__


class Falsified(AssertionError):
    """A property does not hold. The text says which, for which smallest input, and what to try.

    kind       the name of the property set
    failures   every property that does not hold; the text explains the first, with the smallest
               input; those of the others are the first that were found
    held       the properties that do hold
    """

    def __init__(self, kind: str, failures: list[Failure], held: list[str]):
        super().__init__(kind, failures, held)
        self.kind, self.failures, self.held = kind, tuple(failures), tuple(held)

    def __str__(self):
        lines = [str(self.failures[0])]
        if self.held:
            lines.append(_ticks(self.held))
        lines += [f"✗ {failure.name}" for failure in self.failures[1:]]
        return readable("\n".join(lines))

    def _render_traceback_(self):
        """What a notebook shows: the text, without the lines of this package that led to it."""
        return str(self).splitlines()


class Unfinished(Falsified, NotImplementedError):
    """The judged code raises NotImplementedError: the exercise is not done yet."""

    def __str__(self):
        return readable(f"not written yet: {self.failures[0].yours}")


def judge(kind: str, properties: list[Property]) -> Summary:
    """Try every property.

    kind         the name of the property set
    properties   to be tried, in order
    Returns      Summary when all hold
    Raises       Falsified when one does not; Unfinished when the code is a stub
    """
    failures, held = [], []
    for own in properties:
        failure, count = examine(own, smallest=not failures)  # only the first is explained
        if failure is None:
            held.append(f"{own.name} ({count} {own.unit})" if count > 1 else own.name)
        else:
            failures.append(failure)
            if isinstance(failure.cause, NotImplementedError):
                raise Unfinished(kind, [failure], held) from failure.cause
    if failures:
        raise Falsified(kind, failures, held) from failures[0].cause
    return Summary(kind, tuple(held))


def examine(own: Property, smallest: bool = True) -> tuple[Failure | None, int]:
    """Try one property.

    own        the Property
    smallest   whether a smaller input than the first that fails is looked for
    Returns    its failure, if any; the number of inputs it was tried on
    """
    outcomes = {}

    def outcome(case):
        if case not in outcomes:
            if len(outcomes) >= MOST_CALLS:  # enough: the smallest so far is small enough
                return None
            outcomes[case] = _outcome(own, case)
        return outcomes[case]

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = _find(own.cases, lambda case: outcome(case) is not None, own.examples, smallest)
        if found is None:
            return None, len(outcomes)
        wrong = outcomes[found]
        if isinstance(wrong.hint, tuple) and len(wrong.hint) > 1 and smallest:
            # Several mistakes give this answer: see which of them larger inputs show too.
            _find(own.cases, lambda case: outcome(case) and False, own.examples, smallest=False)
    yours, right = show_both(wrong.yours, wrong.right)
    hint = _hint_of(wrong, [other for other in outcomes.values() if other]) or own.hint
    return Failure(own.name, own.tell(found), yours, right, hint, wrong.cause), len(outcomes)


def _hint_of(wrong, all_wrong):
    """Of the mistakes that give the smallest answer, those that give most of the others too.

    On a small input many mistakes give the same answer: alone it says little about the cause.
    """
    if isinstance(wrong.hint, str):
        return wrong.hint
    counts = {words: sum(words in other.hint for other in all_wrong) for words in wrong.hint}
    most = max(counts.values(), default=0)
    if 2 * most < len(all_wrong):
        return ""
    return "; or: ".join(words for words, count in counts.items() if count == most)


def _outcome(own, case):
    try:
        return own.outcome(case)
    except Misfit as misfit:
        nothing = misfit.yours in ("None", "NoneType")
        if misfit.hint:
            hint = misfit.hint
        elif nothing:
            hint = "nothing comes back: is a `return` missing?"
        elif str(misfit.yours).startswith("shape"):
            hint = ""  # the property's own says more
        else:
            hint = "another form is asked for: see Returns in the docstring"
        return Wrong(Words("None") if nothing else misfit.yours, misfit.right, hint)
    except Exception as error:  # the judged code's own: say which input raised it
        words = f"{type(error).__name__}: {error}".rstrip(": ")
        return Wrong(Words(f"raises {words}"), Words("no error"), _where(error), error)


def _where(error):
    """The line of the judged code that raised, in words; what may be missing."""
    trace, line = error.__traceback__, None
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(_HERE) and not code.co_filename.startswith("<frozen"):
            if line and "site-packages" in code.co_filename:
                break  # the line that called NumPy, not one of NumPy's own
            line = f"raised in line {trace.tb_lineno}, in {code.co_name}"
        trace = trace.tb_next
    if line and isinstance(error, NameError) and error.name == "np":
        line += ": `import numpy as np` is missing at the top"
    return line or "the code does not take what it is given: see the signature in the docstring"


_HERE = __file__.removesuffix("judging.py")


def _find(cases, fails, examples, smallest):
    """The smallest case that fails, or the first; None if there is none."""
    if isinstance(cases, tuple):
        return next((case for case in cases if fails(case)), None)
    hypothesis = _hypothesis()
    fixed = hypothesis.settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=examples,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink][: 1 + smallest],
        print_blob=False,
        verbosity=hypothesis.Verbosity.quiet,
    )
    with _no_constants_of_other_modules():
        try:
            return hypothesis.find(cases, fails, settings=fixed)
        except hypothesis.errors.NoSuchExample:
            return None


def _hypothesis():
    try:
        import hypothesis
    except ImportError as error:
        raise ImportError(
            "minires.testing needs hypothesis: pip install 'minires[teach]'"
        ) from error
    return hypothesis


def strategies() -> Any:
    """`hypothesis.strategies`, or an ImportError with the remedy."""
    _hypothesis()
    from hypothesis import strategies

    return strategies


@contextlib.contextmanager
def _no_constants_of_other_modules():
    """Hypothesis also takes numbers that it finds in the user's files, and keeps them in a folder
    `.hypothesis`. Without that, inputs are the same everywhere and no file is left behind.
    """
    from hypothesis.internal.conjecture import providers

    found = getattr(providers, "_get_local_constants", None)
    if found is None:
        yield
        return
    nothing = providers.Constants()
    providers._get_local_constants = lambda: nothing
    try:
        yield
    finally:
        providers._get_local_constants = found


# --- the pytest form ----------------------------------------------------------------------


def suite_of(kind: str, properties: list[Property]) -> Callable:
    """A test function that pytest runs once for each property.

    kind         the name of the property set
    properties   each becomes a test
    """
    import pytest

    by_name = {own.name: own for own in properties}

    @pytest.mark.parametrize("sentence", list(by_name))
    def test(sentence):
        judge(kind, [by_name[sentence]])

    test.__doc__ = f"The property set {kind!r}, one test a property."
    return test


# --- answers ----------------------------------------------------------------------------------


def ask(function: Callable, *arguments: Any, **settings: Any) -> Any:
    """The judged code's answer. It gets copies of all arrays, and must leave them as they are.

    function    the judged code
    arguments   what it is given; arrays, or lists of arrays, are copied
    settings    given by name
    Returns     what it returns
    Raises      Misfit when it changes an array
    """
    given = [_copied(argument) for argument in arguments]
    pairs = [  # made before the call, which may sort or empty a list
        (place, old, new)
        for place, (before, after) in enumerate(zip(arguments, given, strict=True))
        for old, new in zip(_arrays_in(before), _arrays_in(after), strict=True)
    ]
    answer = function(*given, **settings)
    for place, old, new in pairs:
        if not np.array_equal(old, new, equal_nan=True):
            name = _name_of_argument(function, place)
            raise Misfit(
                Words(f"{name} is changed to {show(new)}"),
                Words(f"{name} as it was, {show(old)}"),
                "others still need this array: write x = x − …, not x −= …; or use a copy",
            )
    return answer


def ask_pullbacks(f: Callable, g: np.ndarray, *arguments: Any, **settings: Any) -> Any:
    """What the pullbacks give that f returns beside its result; like `ask`.

    f           returns (result, pullbacks): a function, or one for each input
    g           the gradient of the result
    arguments   what f is given
    settings    given by name
    Returns     what the function returns, or a list of what each returns
    Raises      Misfit when f or a pullback changes an array that f was given
    """

    @functools.wraps(f)
    def both_ways(*given, **settings):
        back = f(*given, **settings)[1]
        return back(g.copy()) if callable(back) else [own(g.copy()) for own in back]

    return ask(both_ways, *arguments, **settings)


def grain(seed: int) -> float:
    """What whole numbers are multiplied by: 1, or ¼ with an odd seed.

    An answer in an array of whole numbers cuts quarters off, and shows itself.

    seed   of the inputs
    """
    return 0.25 if seed % 2 else 1.0


def _arrays_in(argument):
    if isinstance(argument, np.ndarray):
        return [argument]
    return list(argument) if isinstance(argument, list) else []


def _copied(argument):
    if isinstance(argument, list):
        return [part.copy() for part in argument]
    return argument.copy() if isinstance(argument, np.ndarray) else argument


def _name_of_argument(function, place):
    number = f"argument {place + 1}"
    try:
        named = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return number
    is_own = place < len(named) and named[place].kind is not inspect.Parameter.VAR_POSITIONAL
    return named[place].name if is_own else number


def array_of(value: Any, shape: tuple | None = None, what: str = "an array") -> np.ndarray:
    """The judged code's answer as a float64 array, a copy.

    value    the answer
    shape    that it must have; None: any
    what     is expected, in words
    Raises   Misfit when it is not such an array
    """
    if value is None:  # NumPy would make it "not a number"
        raise Misfit(Words("None"), Words(what))
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise Misfit(Words(f"{type(value).__name__} {value!r}"[:80]), Words(what)) from None
    if shape is not None and array.shape != tuple(shape):
        raise Misfit(Words(f"shape {array.shape}"), Words(f"shape {tuple(shape)}"))
    return array


def is_float32(value: Any) -> bool:
    """Whether an answer was computed in float32 (or less), so that it has seven digits.

    value   the answer
    """
    return getattr(value, "dtype", None) in (np.float32, np.float16) or "float32" in str(
        getattr(value, "dtype", "")
    )


def compare(yours: Any, right: Any, tolerance: Any, hint: Any = "") -> Wrong | None:
    """None if no element is further from the right one than `tolerance`; else Wrong.

    yours       the answer
    right       the right one
    tolerance   a number or an array like `right`
    hint        a string, or a list of (wrong value, hint): those near `yours` are taken
    """
    right = np.asarray(right, np.float64)
    array = array_of(yours, right.shape, f"an array {right.shape}" if right.ndim else "a number")
    with np.errstate(all="ignore"):
        near = (np.abs(array - right) <= tolerance) | (array == right)
    if near.all():
        return None
    if not isinstance(hint, str):
        with np.errstate(all="ignore"):
            near_to = [
                words
                for value, words in hint
                if np.shape(value) == array.shape
                and (
                    (np.abs(array - value) <= np.asarray(tolerance) + 1e-6 * np.abs(value))
                    | (array == value)  # two infinities
                ).all()
            ]
        hint = tuple(near_to)
    if getattr(getattr(yours, "dtype", None), "kind", "") in ("i", "u") and (right % 1 != 0).any():
        hint = (
            f"an array of {yours.dtype} cuts off fractions: was it made with dtype=int, or from "
            "whole numbers, as np.full(n, 0) is?"
        )
    if right.size > 6:  # the first element that is wrong
        place = tuple(int(i) for i in np.argwhere(~near)[0])
        at = Words(f"{show(array[place])} at {list(place)}")
        return Wrong(at, Words(show(right[place])), hint)
    if right.size == 1:
        array, right = array.item(), right.item()
    return Wrong(array, right, hint)


def accepts(function: Any, name: str) -> bool:
    """Whether a function takes an argument of this name.

    function   that may take it
    name       of the argument
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    kinds = [parameter.kind for parameter in parameters.values()]
    return name in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def required_arguments(function: Any) -> list[str]:
    """The names of a function's arguments that have no default, in order.

    function   or a class
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    ordinary = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind in ordinary]


# --- words ------------------------------------------------------------------------------------


class Words(str):
    """Text that is shown as it is."""

    __slots__ = ()


def show(value: Any, digits: int = 6) -> str:
    """A number or an array in few characters.

    value    a number, an array or text
    digits   significant ones
    """
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        return repr(value)
    if array.ndim == 0:
        number = array.item()
        if isinstance(number, float) and number == int(number if np.isfinite(number) else 0):
            return f"{number:.0f}" if abs(number) < 1e6 else f"{number:.{digits}g}"
        return f"{number:.{digits}g}" if isinstance(number, float) else str(number)
    if array.size > 64:
        return f"an array {array.shape}"
    return "[" + ", ".join(show(part, digits) for part in array) + "]"


def show_both(yours: Any, right: Any) -> tuple[str, str]:
    """Both in as many digits as it takes to see that they differ.

    yours   the answer
    right   the right one
    """
    for digits in (3, 6, 10, 17):
        texts = show(yours, digits), show(right, digits)
        if texts[0] != texts[1]:
            return texts
    return texts


def _ticks(held):
    marked = [f"✓ {name}" for name in held]
    width = 100
    lines, line = [], ""
    for mark in marked:
        if line and len(line) + 6 + len(mark) > width:
            lines.append(line)
            line = ""
        line = f"{line}      {mark}" if line else mark
    return "\n".join([*lines, line])


# What a terminal that is not Unicode shows instead.
_ASCII = {
    "✗": "x", "✓": "+", "θ̄": "mean", "θ": "theta", "σ": "sigma", "²": "^2", "−": "-", "–": "-",
    "√": "sqrt", "Σ": "sum", "·": "*", "×": "x", "…": "...", "ᵀ": "^T", "⟨": "<", "⟩": ">",
    "≠": "!=", "≤": "<=", "≥": ">=", "→": "->", "←": "<-", "β": "beta", "ε": "epsilon",
    "∂": "d", "μ": "mu", "₁": "1", "₂": "2", "₀": "0", "ˣ": "^x", "∈": "in", "—": "-", "’": "'",
}  # fmt: skip


def readable(text: str, stream: Any = None) -> str:
    """The text as it is where the terminal can show it, else in ASCII.

    text     to be printed
    stream   where it will be printed (standard output without it)
    """
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        for mark, plain in _ASCII.items():
            text = text.replace(mark, plain)
        return text.encode("ascii", "backslashreplace").decode("ascii")
    return text
