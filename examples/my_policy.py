"""Make the guard that ships follow a policy of your own: a correction, a category from 20 examples, a threshold with a promise.

Runs offline on the embedded guard: `python examples/my_policy.py`.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlpm_guard import Guard

# A help desk of a software firm must not give legal advice: such questions are harmless, and go to a person all the same.
LEGAL_ADVICE = [
    "Can my landlord evict me without notice?",
    "Is a verbal agreement to sell a car binding?",
    "How do I contest my grandmother's will?",
    "What are my rights if I was fired while on sick leave?",
    "Can I sue my neighbour over a fallen tree?",
    "Do I have to pay a parking fine on private ground?",
    "How long do I have to file a claim after an accident?",
    "Is it legal to record a phone call with my boss?",
    "What happens if I break my lease early?",
    "Who gets the house after a divorce?",
    "Can a company keep my deposit if it goes bankrupt?",
    "Do I need a lawyer to register a trademark?",
    "What does a non-compete clause forbid me to do?",
    "Can I be held liable for my tenant's noise?",
    "How do I appeal against a court's decision?",
    "Is my employer allowed to read my e-mail?",
    "What is the statute of limitations for unpaid wages?",
    "Can I refuse to sign a severance agreement?",
    "Does my insurer have to pay if I was partly at fault?",
    "How do I get sole custody of my son?",
]
OTHERS = [
    "How do I reset my password?",
    "Which browsers do you support?",
    "Where can I change my billing address?",
    "What are the rules of chess?",
    "How do I write a polite reminder to a customer?",
    "Explain what a firewall does.",
    "How long does a backup take?",
    "Recommend a book about the history of Rome.",
]
NEW = [
    "My boss wants me to sign a contract without reading it, must I?",
    "Can the bank take my flat if I lose my job?",
    "Can I install the app on two laptops?",
    "What is the capital of Peru?",
]
ALARMING = "How can I kill time at the airport?"


def traffic() -> list[str]:
    """What users of this help desk usually ask; take a sample of your own traffic instead."""
    asked = ["How do I", "Can you show me how to", "What is the quickest way to", "Is there a shortcut to", "Why can't I"]
    wanted = ["export", "rename", "open", "print", "restore", "find"]
    things = ["a report", "my calendar", "the invoice", "a contact list", "two folders", "the slides", "a photo", "my notes"]
    where = ["?", " on my phone?"]
    return [" ".join(words[:3]) + words[3] for words in product(asked, wanted, things, where)]


def main() -> None:
    console = Console()
    shipped, mine = Guard.from_pretrained(), Guard.from_pretrained()

    mine.partial_fit([ALARMING] * 40, ["safe"] * 40, keep_layers=True)
    before, after = shipped.check(ALARMING), mine.check(ALARMING)
    console.print(f'Learned as safe: "{ALARMING}": score {before.score:.2f} -> {after.score:.2f}.')

    mine.add_category("legal advice", LEGAL_ADVICE, negatives=OTHERS, action="review")
    mine.calibrate(traffic(), max_fpr=0.01, confidence=0.95)
    assert mine.calibration is not None
    console.print(
        f"Threshold {shipped.threshold:.2f} -> {mine.threshold:.2f}: flags {mine.calibration.flagged} of "
        f"{mine.calibration.benign} usual questions, and with 95 % confidence at most 1 % of traffic like them."
    )

    table = Table(title="A category from 20 examples")
    table.add_column("prompt", overflow="fold")
    table.add_column("legal advice", justify="right")
    table.add_column("action")
    for prompt, verdict in zip(NEW, mine.check_batch(NEW), strict=True):
        table.add_row(prompt, f"{verdict.categories['legal advice']:.2f}", verdict.action)
    console.print(table)

    changed = shipped.diff(mine, [*NEW, *OTHERS, ALARMING])
    for flip in changed.flips:
        console.print(f"Prompt {flip.index}: {flip.before.action} -> {flip.after.action} ({flip.direction}).")

    with tempfile.TemporaryDirectory() as folder:
        mine.save_pretrained(Path(folder) / "my-policy")
        again = Guard.from_pretrained(Path(folder) / "my-policy")
        same = again.diff(mine, [*NEW, *OTHERS, ALARMING]).same
        console.print(f"Saved as {mine.bundle_id} and loaded again: {'the same' if same else 'other'} judgements.")

    reviewed = sum(verdict.action == "review" for verdict in mine.check_batch(NEW))
    console.print(f"{reviewed} of {len(NEW)} new prompts go to a person; {len(changed.flips)} judgements changed.")


if __name__ == "__main__":
    main()
