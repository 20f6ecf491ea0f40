"""Recipes of the default guard compared on the same cached layer states, each judged on sources that it has not seen.

Leave-one-source-out: a source's rows of one label, scored by a fit without that source, beside a fixed pool of held-out rows
of the other label; the figure is average precision. It is the honest estimate of what prompts from elsewhere meet, and what a
recipe is chosen by. `eval/` is not read.

The states are those of the published encoder: the adapter that ships has learned from every source, so that on its states no
source would be unseen. `left_out.py` trains adapters that have not.

The prompts are not part of this project: the script needs a data folder (an argument, or the environment variable
MLPM_GUARD_DATA) with `train/`. Without one it says so and ends. States are kept in `--cache` and encoded only once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from _bench import Figure, options, report
from scipy.linalg import cho_factor, cho_solve

Array = npt.NDArray[np.floating]
Discriminants = tuple[Array, Array]

_ROWS, _QUICK_ROWS = 200, 60
_POOL_ROWS = 20
_TARGET_ROWS = 300
_FEWEST = 20
_SAMPLE = 3000
_FLAGGED = 0.02
_WINDOWS = 4
_CHUNK = 512

PLAIN, TWIN = "plain", "twin"
NOISY = ("realtoxicityprompts_sub", "safetext", "hatecheck", "harmfulqa", "ailuminate_demo", "jade_db")
ATTACKS = ("cyberseceval_prompt_injection", "deepset_prompt_injections", "inthewild_jailbreak")


@dataclass(frozen=True)
class Prompts:
    """States of training windows, and what they belong to.

    Attributes:
        states: shape (windows, layers, dim), float32.
        owner: prompt of every window, shape (windows,), ascending.
        source: of every prompt.
        label: of every prompt, 1 unsafe.
        kind: of every prompt: "plain", "twin", or the transformation of a copy.
        held: of every prompt: whether it is kept for measuring.
    """

    states: npt.NDArray[np.float32]
    owner: npt.NDArray[np.int64]
    source: npt.NDArray[np.str_]
    label: npt.NDArray[np.int64]
    kind: npt.NDArray[np.str_]
    held: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Variant:
    """One recipe.

    Attributes:
        name: as it stands in the table.
        ridge: added to the covariance, as a multiple of its mean eigenvalue; None is the Bayes ridge of the reference.
        aggregation: of the layers: a regression on "probabilities" or on "log_odds", or the plain "mean" of the log-odds.
        joint: one discriminant over all layers side by side instead of one a layer.
        between: weight of the scatter between the sources of a class within the covariance; 1 is the reference.
        balance: power of a source's size that its weight is divided by: 0 every row counts the same, 1 every source.
        weights: factor of single sources.
        kinds: kinds of rows to learn from.
        layers: positions of the layers to use; None uses all.
        numbers: first and last of a state's numbers to use, the last one excluded; None uses all.
    """

    name: str
    ridge: float | None = None
    aggregation: str = "probabilities"
    joint: bool = False
    between: float = 1.0
    balance: float = 0.0
    weights: dict[str, float] = field(default_factory=dict)
    kinds: tuple[str, ...] = (PLAIN,)
    layers: tuple[int, ...] | None = None
    numbers: tuple[int, int] | None = None

    def seen(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What is read of states, as shape (n, layers, dim)."""
        if self.layers is not None:
            states = states[:, list(self.layers)]
        if self.numbers is not None:
            states = states[:, :, slice(*self.numbers)]
        return states.reshape(len(states), 1, -1) if self.joint else states


REFERENCE = Variant("reference")


def variants(copies: Sequence[str]) -> list[Variant]:
    """What is compared, the reference first, one change at a time and then together."""
    log_odds = replace(REFERENCE, aggregation="log_odds")
    noisy, attacks = dict.fromkeys(NOISY, 0.25), dict.fromkeys(ATTACKS, 0.25)
    kinds = (PLAIN, TWIN, *copies)
    return [
        REFERENCE,
        replace(log_odds, name="log-odds"),
        replace(REFERENCE, name="mean of log-odds", aggregation="mean"),
        # The embedded encoder's states are the mean over the tokens, then the state of [CLS].
        replace(REFERENCE, name="mean without [CLS]", numbers=(0, 384)),
        replace(REFERENCE, name="[CLS] alone", numbers=(384, 768)),
        *(replace(REFERENCE, name=f"layer {index + 1} alone", layers=(index,)) for index in (2, 5)),
        *(replace(REFERENCE, name=f"ridge {ridge:g}", ridge=ridge) for ridge in (0.1, 0.3, 1.0)),
        *(replace(REFERENCE, name=f"between sources x {weight:g}", between=weight) for weight in (0.0, 3.0, 10.0, 30.0)),
        *(replace(REFERENCE, name=f"sources balanced, power {power:g}", balance=power) for power in (0.5, 1.0)),
        replace(REFERENCE, name="noisy sources x 0.25", weights=noisy),
        replace(REFERENCE, name="attack sources x 0.25", weights=attacks),
        replace(REFERENCE, name="with twins", kinds=(PLAIN, TWIN)),
        replace(REFERENCE, name="with twins and copies", kinds=kinds),
        replace(log_odds, name="log-odds, with twins and copies", kinds=kinds),
        *(replace(REFERENCE, name=f"joint, ridge {ridge:g}", joint=True, ridge=ridge) for ridge in (0.1, 0.5)),
    ]


class Fits:
    """Discriminants of a variant with any source left out, by adding and subtracting the scatter of single sources."""

    def __init__(self, prompts: Prompts, variant: Variant) -> None:
        self._variant = variant
        usable = ~prompts.held & np.isin(prompts.kind, variant.kinds)
        chosen = usable[prompts.owner]
        self.states = states = variant.seen(prompts.states[chosen])
        self.source, self.label = prompts.source[prompts.owner[chosen]], prompts.label[prompts.owner[chosen]]
        names, counts = np.unique(self.source, return_counts=True)
        size = dict(zip(names.tolist(), counts.tolist(), strict=True))
        self._weight = {
            name: variant.weights.get(name, 1.0) * (size[name] / np.mean(counts)) ** -variant.balance for name in size
        }
        self._groups = {
            (name, label): np.flatnonzero((self.source == name) & (self.label == label))
            for name in size
            for label in (0, 1)
            if ((self.source == name) & (self.label == label)).any()
        }
        self._means = {key: states[rows].mean(axis=0, dtype=np.float64) for key, rows in self._groups.items()}
        self._total: Array | None = None

    def weights_of(self, rows: npt.NDArray[np.int64]) -> Array:
        """Weight of every one of these windows."""
        return np.array([self._weight[name] for name in self.source[rows].tolist()])

    def without(self, left_out: str | None) -> Discriminants:
        """Weights (layers, dim) and biases (layers,) of a fit without one source."""
        groups = {key: rows for key, rows in self._groups.items() if key[0] != left_out}
        amount = {key: self._weight[key[0]] * len(rows) for key, rows in groups.items()}
        mean = [
            sum(amount[key] * self._means[key] for key in groups if key[1] == label)
            / sum(amount[key] for key in groups if key[1] == label)
            for label in (0, 1)
        ]
        if self._total is None:
            self._total = sum(self._within(key) for key in self._groups)
        scatter = self._total - sum(self._within(key) for key in self._groups if key[0] == left_out)
        number = sum(amount.values())
        _, layers, dim = self.states.shape
        coef, bias = np.zeros((layers, dim)), np.zeros(layers)
        offsets = np.stack([np.sqrt(self._variant.between * amount[key]) * (self._means[key] - mean[key[1]]) for key in groups])
        for layer in range(layers):
            covariance = (scatter[layer] + offsets[:, layer].T @ offsets[:, layer]) / number
            level = float(np.trace(covariance)) / dim
            covariance.flat[:: dim + 1] += level * (dim / (number - 1) if self._variant.ridge is None else self._variant.ridge)
            factored = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
            coef[layer] = cho_solve(factored, mean[1][layer] - mean[0][layer], check_finite=False)
            bias[layer] = -0.5 * coef[layer] @ (mean[1][layer] + mean[0][layer])
        return coef, bias

    def _within(self, key: tuple[str, int]) -> Array:
        """Weighted scatter of a group around its own mean, shape (layers, dim, dim)."""
        centred = self.states[self._groups[key]] - self._means[key].astype(np.float32)
        found = np.stack([centred[:, layer].T @ centred[:, layer] for layer in range(centred.shape[1])])
        return found.astype(np.float64) * self._weight[key[0]]


def log_odds_of(states: npt.NDArray[np.float32], discriminants: Discriminants) -> Array:
    """Log-odds of every layer, shape (n, layers)."""
    coef, bias = discriminants
    values = np.einsum("nld,ld->nl", states, coef.astype(np.float32), optimize=True)
    return values.astype(np.float64) + bias


def aggregator(variant: Variant, log_odds: Array, labels: npt.NDArray[np.int64], weights: Array) -> Callable[[Array], Array]:
    """From the layers' log-odds to a score, learned on a sample of training windows."""
    from sklearn.linear_model import LogisticRegression

    # As the shipped classifier recalibrates: a layer's log-odds are brought to the size that its own spread says.
    middle, spread = log_odds.mean(axis=0), log_odds.std(axis=0)
    separation = (log_odds[labels == 1].mean(axis=0) - log_odds[labels == 0].mean(axis=0)) / spread

    def scaled(values: Array) -> Array:
        return (values - middle) / spread * separation

    if variant.aggregation == "mean" or log_odds.shape[1] == 1:
        return lambda values: scaled(values).mean(axis=1)

    def features(values: Array) -> Array:
        return 0.5 * np.tanh(0.5 * scaled(values)) if variant.aggregation == "probabilities" else scaled(values)

    importance = weights.copy()
    for label in (0, 1):
        importance[labels == label] *= 0.5 * len(labels) / importance[labels == label].sum()
    model = LogisticRegression(C=1.0, l1_ratio=1.0, solver="liblinear", tol=1e-5, max_iter=1000, random_state=0)
    model.fit(features(log_odds), labels, sample_weight=importance)
    return lambda values: features(values) @ model.coef_[0] + model.intercept_[0]


def scorer(fits: Fits, variant: Variant, left_out: str | None) -> Callable[[npt.NDArray[np.float32]], Array]:
    """Scores of windows, from states of shape (n, layers, dim), by a fit without one source."""
    discriminants = fits.without(left_out)
    rows = np.flatnonzero(fits.source != left_out)
    rows = np.concatenate([np.random.default_rng(0).permutation(rows[fits.label[rows] == label])[:_SAMPLE] for label in (0, 1)])
    combine = aggregator(variant, log_odds_of(fits.states[rows], discriminants), fits.label[rows], fits.weights_of(rows))

    def score(states: npt.NDArray[np.float32]) -> Array:
        return combine(log_odds_of(variant.seen(states), discriminants))

    return score


@dataclass(frozen=True)
class Outcome:
    """How a variant does on sources that it has not seen.

    Attributes:
        precision: average precision by source and label.
        found: by unsafe source, the share scoring above all but 2 % of the harmless pool.
    """

    precision: dict[tuple[str, int], float]
    found: dict[str, float]

    def mean(self, label: int | None = None) -> float:
        """Mean average precision over all sources, or over those of one label."""
        return float(np.mean([value for (_, of), value in self.precision.items() if label in (None, of)]))


def leave_one_source_out(prompts: Prompts, variant: Variant) -> Outcome:
    """Judge every source by a fit without it."""
    fits = Fits(prompts, variant)
    outcome = Outcome({}, {})
    for source, label, rows in targets(prompts):
        judged(prompts, source, label, rows, scorer(fits, variant, source), outcome)
    return outcome


def judged(
    prompts: Prompts,
    source: str,
    label: int,
    rows: npt.NDArray[np.int64],
    score: Callable[[npt.NDArray[np.float32]], Array],
    outcome: Outcome,
) -> None:
    """Add the figures of one source and label, whose rows are scored beside the pool of the other label."""
    from sklearn.metrics import average_precision_score

    own, others = _best_window(prompts, rows, score), _best_window(prompts, _pool(prompts, 1 - label), score)
    truth = np.concatenate([np.full(len(own), label), np.full(len(others), 1 - label)])
    outcome.precision[source, label] = float(average_precision_score(truth, np.concatenate([own, others])))
    if label:
        outcome.found[source] = float((own > np.quantile(others, 1.0 - _FLAGGED)).mean())


def targets(prompts: Prompts) -> Iterator[tuple[str, int, npt.NDArray[np.int64]]]:
    """Sources to leave out, a label of them, and the rows to judge."""
    for source in np.unique(prompts.source).tolist():
        for label in (0, 1):
            rows = np.flatnonzero((prompts.source == source) & (prompts.label == label) & np.isin(prompts.kind, (PLAIN, TWIN)))
            if len(rows) >= _FEWEST:
                yield source, label, np.random.default_rng(0).permutation(rows)[:_TARGET_ROWS]


def _pool(prompts: Prompts, label: int) -> npt.NDArray[np.int64]:
    chosen = (prompts.label == label) & prompts.held & (prompts.kind == PLAIN)
    return np.concatenate(
        [np.flatnonzero(chosen & (prompts.source == source))[:_POOL_ROWS] for source in np.unique(prompts.source[chosen])]
    )


def _best_window(prompts: Prompts, rows: npt.NDArray[np.int64], score: Callable[[npt.NDArray[np.float32]], Array]) -> Array:
    windows = np.flatnonzero(np.isin(prompts.owner, rows))
    best = np.full(len(prompts.label), -np.inf)
    np.maximum.at(best, prompts.owner[windows], score(prompts.states[windows]))
    return best[rows]


def load(data: Path, cache: Path, rows: int, adapter: Path | None = None) -> Prompts:
    """States from the cache, or encoded and kept there; with an adapter, those of the adapted encoder."""
    path = cache / f"states-{'published' if adapter is None else adapter.stem}-{rows}.npz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _encode(data, path, rows, adapter)
    with np.load(path) as kept:
        return Prompts(**{name: kept[name] if name != "states" else kept[name].astype(np.float32) for name in kept})


def _encode(data: Path, path: Path, limit: int, adapter: Path | None) -> None:
    from mlpm_guard import Guard
    from mlpm_guard.bundles.augment import augmented
    from mlpm_guard.bundles.fit_default import Row, held_out, read, twin_rows
    from mlpm_guard.encoders.embedded import EmbeddedEncoder
    from mlpm_guard.windows import training_pieces

    plain: list[tuple[Row, bool]] = []
    for file in sorted((data / "train").glob("*.jsonl.gz")):
        source = file.name.removesuffix(".jsonl.gz")
        drawn = sorted(read(file), key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest())
        for held in (False, True):
            of = [row for row in drawn if held_out(source, str(row["id"])) == held and str(row["text"]).strip()][:limit]
            plain += [(Row(source, str(row["text"]), int(str(row["label"]))), held) for row in of]
    twins = twin_rows()
    copies = list(augmented([row for row, held in plain if not held] + twins, seed=0))
    table: list[tuple[str, str, int, str, bool]] = [(row.text, row.source, row.label, PLAIN, held) for row, held in plain]
    table += [(row.text, row.source, row.label, TWIN, False) for row in twins]
    table += [(copy.text, copy.source, copy.label, copy.transformation, False) for copy in copies]
    guard = Guard(EmbeddedEncoder(adapter=adapter))
    states: list[npt.NDArray[np.float16]] = []
    owner: list[int] = []
    for start in range(0, len(table), _CHUNK):
        texts = [row[0] for row in table[start : start + _CHUNK]]
        pieces = []
        for index, (text, spans) in enumerate(zip(texts, guard.encoder.spans(texts), strict=True)):
            cut = training_pieces(text, spans, guard.window, _WINDOWS)
            pieces += [text[piece.start : piece.end] for piece in cut]
            owner += [start + index] * len(cut)
        states.append(np.asarray(guard.encoder.encode(pieces), np.float16))
        print(f"encoded {start + len(texts):,} of {len(table):,}", file=sys.stderr)
    columns: dict[str, Any] = dict(
        zip(
            ("source", "label", "kind", "held"),
            (np.array(column) for column in list(zip(*table, strict=True))[1:]),
            strict=True,
        )
    )
    np.savez(path, states=np.concatenate(states), owner=np.array(owner), **columns)


def main() -> int:
    """Compare and report."""
    parser = options(__doc__)
    parser.add_argument("data", nargs="?", help="data folder; by default the environment variable MLPM_GUARD_DATA")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "results" / "cache", help="folder for states")
    parser.add_argument("--rows", type=int, help="rows of a source at most")
    parser.add_argument("--only", help="names of variants, separated by semicolons; the reference always runs")
    arguments = parser.parse_args()
    folder = arguments.data or os.environ.get("MLPM_GUARD_DATA")
    if not folder:
        print("ablation: skipped, no data folder: give one as an argument or in MLPM_GUARD_DATA")
        return 0
    prompts = load(Path(folder), arguments.cache, arguments.rows or (_QUICK_ROWS if arguments.quick else _ROWS))
    copies = sorted(set(prompts.kind.tolist()) - {PLAIN, TWIN})
    only = None if arguments.only is None else {REFERENCE.name, *arguments.only.split(";")}
    figures: list[Figure] = []
    by_source: dict[str, dict[str, float]] = {}
    reference: Outcome | None = None
    for variant in variants(copies):
        if only is not None and variant.name not in only:
            continue
        outcome = leave_one_source_out(prompts, variant)
        reference = reference or outcome
        figures += list(_figures(variant, outcome, reference))
        by_source[variant.name] = {
            f"{source}, {'unsafe' if label else 'safe'}": round(value, 4)
            for (source, label), value in outcome.precision.items()
        }
        print(json.dumps({"variant": variant.name, **{each.name.split(", ")[0]: each.median for each in figures[-4:]}}))
    return report("ablation", figures, quick=arguments.quick, average_precision=by_source)


def _figures(variant: Variant, outcome: Outcome, reference: Outcome) -> Iterator[Figure]:
    """Mean, minimum and maximum over the sources."""
    for what, values in (
        ("average precision", outcome.precision.values()),
        ("unsafe sources", [value for (_, label), value in outcome.precision.items() if label]),
        ("found at 2 % flagged", outcome.found.values()),
        ("change", [outcome.precision[key] - reference.precision[key] for key in outcome.precision]),
    ):
        listed = list(values)
        yield Figure(f"{what}, {variant.name}", float(np.mean(listed)), min(listed), max(listed), len(listed), "share")


if __name__ == "__main__":
    sys.exit(main())
