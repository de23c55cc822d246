"""Text: corpora, tokenisation, and how text becomes private prompts and continuations."""

from del_lightning.data.corpora import Corpus, check_corpus, load_corpus
from del_lightning.data.generation import Batch, Example, GenerationDataModule, Prompt, collate, opening_ids
from del_lightning.data.tokens import Ragged, tokenize, tokenizer_content, unigram_counts

__all__ = [
    "Batch",
    "Corpus",
    "Example",
    "GenerationDataModule",
    "Prompt",
    "Ragged",
    "check_corpus",
    "collate",
    "load_corpus",
    "opening_ids",
    "tokenize",
    "tokenizer_content",
    "unigram_counts",
]
