"""The card of the prompt guard that ships, as Markdown with front matter, and the sections that both cards share.

Pure functions of a bundle and of what was measured: every figure on the page comes from one of the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from pydantic import JsonValue

from mlpm_guard.bundle import Bundle
from mlpm_guard.bundles import card_outside, card_tables
from mlpm_guard.bundles.augment import benign_twins
from mlpm_guard.bundles.card_figures import CardFigures, SetFigures
from mlpm_guard.bundles.card_reference import ROWS_PER_SOURCE, THRESHOLD
from mlpm_guard.bundles.card_sources import COPIES, find, on_the_hub
from mlpm_guard.encoders.embedded import ADAPTER_SHA256, MODEL, REVISION, WEIGHTS_SHA256

TRIALS = Path(__file__).with_name("trials.md")
COMMAND = "python mlpm_guard/bundles/card.py DATA_FOLDER"
_COUNTS = ("prompts_per_source", "answers_per_source")
_TOLD = {
    *_COUNTS,
    "description", "license", "seed", "prompts", "answers", "threshold_rule", "licenses_of_sources", "figures", "adapter",
}  # fmt: skip
_MEASURES = {"f1": "F1", "average_precision": "average precision", "recall": "recall", "flagged": "false-positive rate"}
_METRICS = {"f1": "f1", "average_precision": "average_precision", "recall": "recall", "flagged": "false_positive_rate"}


def prompt_page(bundle: Bundle, figures: CardFigures) -> str:
    """The card, as Markdown with front matter."""
    counts = counts_of(bundle)
    safe, unsafe = figures.reference_rows
    compared = ""
    if figures.trials:
        compared = f"""
Recipes on the states of the published encoder, each judged on sources that were left out of its fit
(`python benchmarks/ablation.py DATA_FOLDER`; the last row, where there is one, by `left_out.py`):

{card_tables.trials_table(figures)}
"""
    outside = "" if figures.outside is None else f"\n{card_outside.prompts_section(figures.outside)}\n"
    return f"""{front_matter("mlpm-guard-default", bundle, counts, figures.shipped.sets)}
# default: the prompt guard of mlpm-guard

Reads a prompt with a small encoder and says how likely it is that it asks for something harmful, and which category that is.
It judges from the encoder's own hidden states: a prototype of harmful and one of harmless prompts in every layer, and a
logistic regression over the layers.

**Made for** a first, cheap gate in front of a language model, on a CPU, with a threshold set on traffic of your own; as a
start to correct or to fit further; as a baseline. **Not made for** deciding about people, for being the only measure where a
missed request does harm, for images or audio, or for languages and kinds of text whose figures below are poor.

```python
from mlpm_guard import Guard

guard = Guard.from_pretrained()
verdict = guard.check("How do I sharpen a kitchen knife?")
print(verdict.flagged, verdict.score, verdict.threshold, verdict.category)
```

## Training data

{data_section(bundle, counts, "prompts")}

**Held out** from every public source, and never learned from: rows whose id has a SHA-1 that is divisible by ten; for MultiJail
and XQuAD the id without its language, so that translations stay together. Training rows that repeat a row of a test set were
taken out before.

## Recipe

{recipe_section(bundle)}

## Figures

{measured_by(figures.shipped.bundle_id, figures.shipped.threshold)}

Beside it stands the **reference**: plain MLPM after its authors, on the states of the same encoder without an adapter, at
most {ROWS_PER_SOURCE:,} rows of each training source ({safe:,} harmless and {unsafe:,} harmful in all), nothing added,
threshold {THRESHOLD:g}. Both read texts alike, disguises included. Neither has learned from a row of this section. HarmBench's
requests for copyrighted text look harmless and are reported apart.

### At the shipped threshold

{card_tables.sets_table(figures.shipped.sets, figures.reference.sets)}

F1 of a set without harmless rows is that of 1 and the recall.

### Operating curve

Thresholds by the share of everyday prompts (MT-Bench and Vicuna, MMLU sample, TruthfulQA, HumanEval together) that they flag;
intervals take the threshold as given.

{card_tables.curve_table(figures)}

### By category

Held-out harmful rows of all training sources, at most {figures.held_out_rows} of each source:

{card_tables.category_table(figures)}

### By language

Held-out questions of sources that say the same in several languages, MultiJail (harmful) and XQuAD (harmless):

{card_tables.language_table(figures)}

### By training source

Held-out rows, at most {figures.held_out_rows} of each label. The guard has learned from other rows of these sources, so they
are the easier half of what it meets.

{card_tables.source_table(figures)}

### Calibration

Expected calibration error in ten equally filled bins, and its bootstrap interval, which leans upwards. A probability is true to
the share of harmful prompts among those it was measured on; in traffic with fewer of them it is too high.

{card_tables.calibration_tables(figures)}

### Disguises, wrappers and padding

At most {figures.rows} rows of each set, seed {figures.seed}: recall, and its ratio to clean recall; harmless prompts
flagged, and how many more than clean. Wrappers and padding are others than those that anything here learned from; typos are
made in the same way.

{card_tables.robustness_tables(figures)}
{outside}
## What was tried
{compared}
{TRIALS.read_text(encoding="utf-8").strip()}

## Figures that others published, on models of their own

F1 times 100 as reported in arXiv 2502.16174. **None of these was measured by this project**, and they are not comparable row by
row: other and far larger models, whole sets where the ones above are parts, other thresholds.

{card_tables.published_table()}

## What it is bad at

The worst cells of all tables above, found by the command that makes this page:

{card_tables.weakest_tables(figures.shipped)}

## Limits

* The encoder is small and English first; what it was not shown in a language, it mostly does not know there.
* Public prompts are cleaner and blunter than traffic. Set the threshold on your own, and watch it (`DriftMonitor`).
* Held-out rows share style with training rows. Some translations within a source have ids of their own, so that a held-out row
  may have been learned in another language.
* Evaluation sets were looked at while the recipe was made. Only what you measure on prompts that nobody here has seen is free
  of that.
* Labels follow their sources, which disagree about what is harmful; noisy sources are marked in the table of data.
* A verdict is no explanation of a person's intent. People must be able to have a refusal looked at.

## Refit it on data of your own

```bash
mlpm-guard fit labelled.jsonl --out my-guard
mlpm-guard calibrate ./my-guard traffic.jsonl --max-fpr 0.05 --out my-calibrated-guard
mlpm-guard evaluate ./my-calibrated-guard labelled.jsonl
```

`labelled.jsonl` has `text` and `label` (1 harmful, 0 harmless) on every line, and perhaps `category`; `traffic.jsonl` has
harmless `text` that was not fitted on. Or go on from this guard:

```python
from mlpm_guard import Guard

guard = Guard.from_pretrained()
guard.partial_fit(["Tell me how to pick my neighbour's lock unseen.", "How does a pin tumbler lock work?"], [1, 0])
guard.save_pretrained("my-guard")
```

From a folder of public data, `python mlpm_guard/bundles/recipe.py DATA_FOLDER` makes everything that ships again: adapter,
bundles and cards.

## Licence

{licence_section(counts)}
"""


def front_matter(name: str, bundle: Bundle, counts: Mapping[str, int], sets: Mapping[str, SetFigures]) -> str:
    """YAML between dashes, as the Hugging Face hub reads it."""
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=key.replace(" ", "_"),
            dataset_name=card_tables.TITLES.get(key, key),
            metric_type=_METRICS[measure],
            metric_name=title,
            metric_value=round(figure.value, 4),
        )
        for key, each in sets.items()
        for measure, title in _MEASURES.items()
        if (figure := getattr(each, measure)) is not None
    ]
    identity = bundle.manifest.encoder
    data = ModelCardData(
        language=["en"],
        license=str(bundle.manifest.notes.get("license", "apache-2.0")).lower(),
        library_name="mlpm-guard",
        pipeline_tag="text-classification",
        tags=["moderation", "guardrails", "safety", "prototypes", "hidden-states"],
        base_model=identity.model,
        base_model_relation=None if identity.adapter is None else "adapter",
        datasets=on_the_hub(counts),
        metrics=list(_METRICS.values()),
        model_name=name,
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def counts_of(bundle: Bundle) -> dict[str, int]:
    """Rows learned from, by source, as the bundle's notes have it."""
    for name in _COUNTS:
        counts = bundle.manifest.notes.get(name)
        if isinstance(counts, dict):
            return {source: int(str(count)) for source, count in counts.items()}
    return {}


def data_section(bundle: Bundle, counts: Mapping[str, int], what: str) -> str:
    """Sources with counts and licences, and what was added."""
    notes = bundle.manifest.notes
    of = notes.get(what)
    labels = (
        f"{_number(of.get('safe'))} harmless and {_number(of.get('unsafe'))} harmful {what}" if isinstance(of, dict) else ""
    )
    written = [name for name in counts if (source := find(name)) is not None and source.origin is None]
    copies = [name for name in written if name.partition(":")[0] == COPIES]
    lines = [
        f"{labels or what.capitalize()} were learned from, {sum(counts.values()):,} rows in all (long ones in several windows: "
        f"{bundle.manifest.examples['safe']:,} harmless and {bundle.manifest.examples['unsafe']:,} harmful windows).",
        "",
        card_tables.data_table(counts),
        "",
        "Share-alike marks sources under such a licence, or with one stated on another page of theirs. The bundle holds no "
        "text: sums over hidden states, and the states of a bounded sample of rows. SECURITY.md says what those reveal.",
    ]
    additions = [name for name in written if name not in copies]
    if additions:
        lines += ["", f"Written by this project: {', '.join(f'{counts[name]:,} `{name}`' for name in additions)}."]
        if "benign_twins" in additions:
            lines[-1] += (
                f" The benign twins ({len(benign_twins()):,} in the file) are harmless prompts that sound like a harmful "
                "request, each with a few words on what it resembles."
            )
    if copies:
        changed = ", ".join(f"{counts[name]:,} {name.partition(':')[2] or 'copies'}" for name in copies)
        lines += [
            "",
            f"Copies of training rows, disguised, wrapped, padded or as messages to somebody, more of harmless than of harmful "
            f"ones: {changed}.",
        ]
    return "\n".join(lines)


def recipe_section(bundle: Bundle) -> str:
    """Encoder, adapter, classifier, threshold."""
    manifest = bundle.manifest
    identity, notes = manifest.encoder, manifest.notes
    weights = f"SHA-256 of the weights as hashed by this library: `{identity.weights}`"
    if (identity.model, identity.revision) == (MODEL, REVISION):
        weights = f"`model.safetensors` with SHA-256 `{WEIGHTS_SHA256}`"
    layers = dict(
        zip((identity.layers[at] for at in bundle.scorer.positions.tolist()), bundle.scorer.layer_weights, strict=True)
    )
    weights_of_layers = ", ".join(f"{layer}: {weight:.2f}" for layer, weight in layers.items())
    folds = manifest.classifier.folds
    scores = (
        f"scores of prompts that a discriminant has not seen, in {folds} folds" if folds else "the discriminants' own scores"
    )
    lines = [
        f"* **Encoder**: `{identity.model}` at revision `{identity.revision}`, {weights}; {identity.dtype}, pooling "
        f"{identity.pooling}, {len(identity.layers)} layers of {identity.dim} numbers. Weights do not change when a guard is "
        "fitted.",
        f"* **Adapter**: {_adapter(bundle)}",
        f"* **Reading**: windows of {manifest.window} tokens, sentences, and what disguised text says; the worst piece "
        f"decides. Fragment margin {manifest.fragment_margin:g}.",
        "* **Prototypes**: in every layer the mean of each class and one covariance for both, with the Bayes ridge; a Gaussian "
        "discriminant per layer (Chrabaszcz et al., arXiv 2502.16174). Kept as sums, so that prompts can be learned, unlearned "
        "and merged exactly.",
        f"* **Aggregation**: logistic regression with an L1 penalty (C = {manifest.classifier.C:g}) over the layers' "
        f"log-odds, no weight below zero, fitted on {scores}. Layer weights: {weights_of_layers}.",
        f"* **Threshold**: {manifest.threshold:g}, by the rule: {notes.get('threshold_rule', 'not recorded')}.",
    ]
    if bundle.categories.names:
        lines.append(f"* **Categories**: {', '.join(bundle.categories.names)}.")
    lines += [f"* **{name.replace('_', ' ')}**: {_told(value)}" for name, value in notes.items() if name not in _TOLD]
    lines.append(f"* **Seed**: {notes.get('seed', 'not recorded')}; rows are drawn by a seeded hash of their ids.")
    return "\n".join(lines)


def licence_section(counts: Mapping[str, int]) -> str:
    """What the bundle is under, and what its sources are under."""
    alike = [f"`{name}`" for name in sorted(counts) if (source := find(name)) is not None and source.share_alike]
    text = "Apache-2.0, as the library. The encoder's weights are Apache-2.0 and are not part of the bundle."
    if alike:
        text += f" Sources with a share-alike licence, at least according to one page: {', '.join(alike)}."
    return text


def measured_by(bundle_id: str | None, threshold: float) -> str:
    """Which guard was measured, and by which command."""
    return (
        f"Measured on `{bundle_id}` at its threshold {threshold:g}, by `{COMMAND}`. In brackets: 95 % confidence\nintervals, "
        "exact (Clopper and Pearson) for shares, a bootstrap over the rows within each label for F1 and average precision."
    )


def _adapter(bundle: Bundle) -> str:
    wanted = bundle.manifest.encoder.adapter
    if wanted is None:
        return "none, the weights are as they were published."
    from mlpm_guard.encoders.adapter import read
    from mlpm_guard.encoders.transformer import TransformerEncoder

    encoder = bundle.encoder("cpu")
    path = encoder.adapter_file if isinstance(encoder, TransformerEncoder) else None
    text = f"SHA-256 `{wanted}`."
    if path is not None:
        adapter = read(Path(path), wanted)
        numbers = sum(tensor.numel() for pair in adapter.pairs.values() for tensor in pair)
        text = (
            f"low-rank (LoRA), rank {adapter.info.rank}, on {len(adapter.pairs)} linear maps, {numbers:,} numbers, "
            f"{path.stat().st_size:,} bytes, SHA-256 `{wanted}`; merged into the weights when they load."
        )
    if wanted == ADAPTER_SHA256:
        text += f" {_training()}"
    trained = bundle.manifest.notes.get("adapter")
    return text if trained is None else f"{text} {_told(trained)}"


def _training() -> str:
    """How the adapter that ships was trained, from the recipe that trains it."""
    from mlpm_guard.bundles import train_adapter as recipe
    from mlpm_guard.bundles.fit_default_response import ANSWERS

    return (
        "Trained by `mlpm_guard/bundles/train_adapter.py` on the prompts of `default` and, with an output of their own, on "
        f"the answers of `default-response` ({', '.join(ANSWERS)} and harmless ones). It is the mean of two runs: one on "
        f"public sources and twins ({recipe.EPOCHS[0]:g} epochs), one that also learned traffic, minimal pairs and messages "
        f"({recipe.EPOCHS[1]:g} epochs). At most {recipe.LONGEST['prompt']} tokens of a prompt and "
        f"{recipe.LONGEST['answer']} of an answer, batches of "
        f"{recipe.BATCH_TOKENS:,} tokens, AdamW, learning rate {recipe.RATE:g} along a cosine, labels smoothed by "
        f"{recipe.SMOOTHING:g}. The loss asks every layer for the label, as the prototypes do, and the last "
        f"{recipe.CATEGORY_LAYERS} for the category; sources weigh as a power of their size. A share of the prompts is varied: "
        "typos, wrappers, padding, messages, a harmless prompt beside, an exam question, a part of a long harmless one. "
        f"{recipe.KEPT:.0%} of what was learned is added to the published weights."
    )


def _told(value: JsonValue) -> str:
    """A value of the notes in words."""
    if isinstance(value, dict):
        return "; ".join(f"{name.replace('_', ' ')}: {_told(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(_told(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: JsonValue) -> str:
    return f"{value:,}" if isinstance(value, int) else "an unrecorded number of"
