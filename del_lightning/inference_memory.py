"""What is held beside the language model and its embedding table where nothing trains: evaluation, attacks.

Nothing is kept for a backward pass here, so what counts are the widest tensors that live at one time: logits over the
vocabulary, keys and values of what is generated, likelihoods of every token. Passes of a language model are run on fake
tensors (:mod:`del_lightning.passes`); the attackers' own tables are added up from their chunk sizes.

Prompts are counted in words before a tokenizer is loaded: two tokens are supposed to be a word of private text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from transformers import AutoModel, AutoModelForMaskedLM

from del_lightning.attacks.inversion import FEWEST_TOKENS, LIKELIHOOD_ENTRIES, VOCABULARY_CHUNK
from del_lightning.attacks.inverter import CANDIDATES as RANKED
from del_lightning.codec import AT_A_TIME, default_dim
from del_lightning.config import Config
from del_lightning.lattices import CANDIDATES, POSITIONS
from del_lightning.methods.distances import CELLS
from del_lightning.methods.factory import NEEDS_CODEBOOK, NEEDS_CODEC, NEEDS_PRIOR, NEEDS_VOCABULARY, TEXT_ONLY, built
from del_lightning.passes import Passes

FLOAT, LONG = 4, 8
"""Bytes of a number of float32 and of int64."""
TOKENS_A_WORD, LETTERS_A_TOKEN = 2, 3
"""Of private text at most, and of the public prefix at least."""
SEQUENCES = 8
"""Prompts that the attackers who read whole sequences take at a time, and servers that decode with neighbours."""
FILLED, ENCODED = 32, 32
"""Gaps that a masked language model fills, and texts that a sentence encoder reads, at a time."""
MESSAGES = 10
"""Vectors over the vocabulary that a pass of an exact attack holds for each sequence."""
HOLES = 2.2
"""Resident memory of such a pass over the tensors it holds, as measured: at every position it makes and drops blocks of
a few megabytes, between which a CPU's allocator cannot use all that is free."""


@dataclass(frozen=True)
class Work:
    """Something that is done with a finished model.

    Attributes:
        kind: ``preparation``, ``calibration``, ``attacks`` or ``evaluation``.
        what: For people.
        setting: What makes it smaller.
        size: Bytes beside the model and its embedding table.
    """

    kind: str
    what: str
    setting: str
    size: int


class Planner:
    """Works out the bytes of every kind of work.

    Args:
        config: Settings of the run.
        passes: Of the language model.

    Attributes:
        unknown: Work whose size could not be worked out so far.
    """

    def __init__(self, config: Config, passes: Passes) -> None:
        self.config, self.passes = config, passes
        self.vocabulary, self.width = passes.vocabulary, passes.width
        self.methods, self.unknown = built(config), list[str]()
        data = config.data
        known = [TOKENS_A_WORD * data.prompt_words, *filter(None, [data.max_prompt_tokens])]
        self.private = min(known)
        self.beginning = config.prompt.virtual_tokens + len(data.prefix) // LETTERS_A_TOKEN + 1

    def _work(self, kind: str, what: str, setting: str, size: Callable[[], int]) -> Iterator[Work]:
        """The work, or nothing but an entry in :attr:`unknown`.

        The plan is an estimate: models have code of their own, which may not run on fake tensors, and that ends no run.
        """
        try:
            found = size()
        except Exception:  # noqa: BLE001 - that of any model
            self.unknown.append(what)
        else:
            yield Work(kind, what, setting, found)

    def validation(self) -> Work | None:
        """The largest batch that a training is validated on; None where none can be worked out."""
        found = (
            work
            for rows, setting, tokens, scored in self._validated()
            for work in self._work(
                "validation", "validation", setting, partial(self.passes.scored, rows, tokens, scored)
            )
        )
        return max(found, key=lambda work: work.size, default=None)

    def _validated(self) -> Iterator[tuple[int, str, int, int]]:
        """Rows of each validation's batches, what sets them, and tokens of a row: all and those scored."""
        data, codec, nlu = self.config.data, self.config.codec, self.config.nlu
        rows, setting = data.eval_batch_size, "data.eval_batch_size"
        if self.config.stage.name == "nlu":  # a class is read at the end of two sentences
            tokens = self.config.prompt.virtual_tokens + 2 * nlu.sentence_tokens
            yield nlu.eval_batch_size, "nlu.eval_batch_size", tokens, 1
        else:
            yield rows, setting, self.beginning + data.train_tokens, _clean(data.train_tokens, data.split_ratio)
        if codec.steps:
            yield rows, setting, codec.sequence_tokens, _clean(codec.sequence_tokens, codec.split_ratio)

    def preparation(self) -> Iterator[Work]:
        """What precedes every training: the embedding table in float32, and the codec's projection of it."""
        numbers, double = self.vocabulary * self.width, 2 * FLOAT
        yield Work("preparation", "the embedding table", "model.name", 2 * numbers * self.passes.dtype.itemsize)
        if self.methods & {*NEEDS_CODEC}:
            # Coordinates are sorted by size, with their places and the frequencies up to each.
            fitted = 2 * double * min(numbers, AT_A_TIME) + self._codes * 8
            yield Work("preparation", "the codec", "codec.dim", fitted)

    @property
    def _codes(self) -> int:
        """Bytes of the whole vocabulary's codes in float32."""
        return self.vocabulary * (self.config.codec.dim or default_dim(self.width)) * FLOAT

    def evaluation(self) -> Iterator[Work]:
        """What stage ``evaluate`` does, one thing after the other."""
        data, evaluate, beside = self.config.data, self.config.evaluate, self.tables() + self._decoded()
        tokens = self.beginning + self.private

        def scored() -> int:
            rows = min(data.eval_batch_size, data.max_prompts)
            return beside + self.passes.scored(rows, tokens + data.reference_tokens, data.reference_tokens)

        def written() -> int:
            rows = min(evaluate.generation_batch_size, data.max_prompts)
            return beside + self.passes.generated(rows, tokens, evaluate.max_new_tokens)

        yield from self._work("evaluation", "scoring", "data.eval_batch_size", scored)
        yield from self._work("evaluation", "continuations", "evaluate.generation_batch_size", written)
        yield from self._work("evaluation", "coherence", "evaluate.encoder", lambda: beside + self._encoded())

    def calibration(self) -> Iterator[Work]:
        """The attackers that a privacy parameter is searched with."""
        attack = self.config.attack
        for name in dict.fromkeys(("nearest", *attack.worst_of)):
            size = partial(self._attacked, name, attack.tokens)
            yield from self._work("calibration", f"calibration by {name}", "attack.worst_of", size)

    def attacks(self) -> Iterator[Work]:
        """The attackers of the test prompts."""
        tokens = self.config.data.max_prompts * self.private
        for name in self.config.attack.suite:
            size = partial(self._attacked, name, tokens)
            yield from self._work("attacks", f"the attack {name}", "attack.suite", size)

    def tables(self) -> int:
        """What the front-ends of this run keep of the vocabulary; all stay once they are built."""
        found, methods = 0, self.methods
        if methods & {*NEEDS_CODEC, *NEEDS_CODEBOOK}:
            found += 4 * self._codes  # clean ones, their log odds, those in the making, what the nearest ones are
        if methods & {*NEEDS_VOCABULARY, *TEXT_ONLY}:
            found += self.vocabulary * FLOAT * (self.width + 2 * CELLS)
        if methods & {*NEEDS_CODEBOOK}:
            found += self.vocabulary * self.width * FLOAT  # of the groups' means, where nearly each token is a group
        return found

    def _encoded(self) -> int:
        """The sentence encoder and a batch of texts."""
        data, evaluate = self.config.data, self.config.evaluate
        tokens = TOKENS_A_WORD * max(data.reference_tokens, evaluate.max_new_tokens)
        return self.passes.other(evaluate.encoder, AutoModel, ENCODED, tokens)

    # --- attackers -----------------------------------------------------------------------------------------------

    def _attacked(self, name: str, tokens: int) -> int:
        return self.tables() + self._attacker(name, tokens)

    def _attacker(self, name: str, tokens: int) -> int:
        """Bytes of one attacker of a release of so many tokens."""
        makers: dict[str, Callable[[], int]] = {
            "bayes": self._bayes,
            "bigrams": lambda: self._chain(SEQUENCES, self.private),
            "language-model": self._searched,
            "server-model": self._served,
            "input-inference": lambda: self._bayes() + self._filled(),
            "inverter": self._inverter,
        }
        return makers[name]() if name in makers else self._nearest(tokens)

    def _searched(self) -> int:
        """A beam search: keys and values of every beam, their candidates, and what follows them."""
        rows = self._prompts * self.config.attack.beam
        state = self.passes.state(rows, self.beginning + self.private)
        grown = 3 * rows * self._candidates * FLOAT
        return self._chain(SEQUENCES, self.private) + state + grown + 4 * rows * self.vocabulary * FLOAT

    def _served(self) -> int:
        """The server's model over what it decodes."""
        expected = self.passes.expected(self._prompts, self.beginning + self.private, self.private)
        return self._chain(SEQUENCES, self.private) + self._decoded() + expected

    @property
    def _prompts(self) -> int:
        return min(SEQUENCES, self.config.data.max_prompts)

    @property
    def _candidates(self) -> int:
        return min(CANDIDATES, self.vocabulary)

    @property
    def _copies(self) -> int:
        """Tables of likelihoods that live at one time while a front-end makes one."""
        return 1 if self.methods <= {"clean", "mean", "random", *NEEDS_CODEC} else 3

    def _nearest(self, tokens: int) -> int:
        """Embeddings of the whole release, restored; one tile of scores, and the vocabulary's part of it."""
        tile = 3 * min(tokens, self.config.attack.chunk) * VOCABULARY_CHUNK + 2 * VOCABULARY_CHUNK * self.width
        return FLOAT * (2 * tokens * self.width + tile)

    def _bayes(self) -> int:
        """One piece of likelihoods, and the posterior that is made of it."""
        rows = min(self.config.attack.chunk, max(FEWEST_TOKENS, LIKELIHOOD_ENTRIES // self.vocabulary))
        return (self._copies + 2) * rows * self.vocabulary * FLOAT

    def _chain(self, sequences: int, tokens: int) -> int:
        """The exact passes of :mod:`del_lightning.lattices`: likelihoods of some positions, messages, candidates."""
        rows = max(POSITIONS, sequences)
        tables = HOLES * ((self._copies + 3) * rows + MESSAGES * sequences) * self.vocabulary * FLOAT
        # Numbers and scores of each: a list of them and the tensor it is joined to live side by side.
        return int(tables) + sequences * tokens * self._candidates * (2 * LONG + 10 * FLOAT)

    def _decoded(self) -> int:
        """A server that decodes with neighbours holds what all places of some sequences say of every token."""
        if not self.methods & {*NEEDS_PRIOR} or not self.config.codebook.neighbours:
            return 0
        held = SEQUENCES * self.private + (self._copies + 4) * POSITIONS
        return held * self.vocabulary * FLOAT

    def _filled(self) -> int:
        """A language model's guesses at the gaps of one prompt."""
        masked = self.config.attack.masked_model
        if masked is None:
            return self.passes.expected(1, self.beginning + self.private, self.private)
        return self.passes.other(masked, AutoModelForMaskedLM, FILLED, 2 * self.private) + (
            FILLED * self.vocabulary * 2 * FLOAT
        )

    def _inverter(self) -> int:
        """The inverter's own vocabulary, and its largest batch: exact pass, candidates' vectors and encoder."""
        inverter = self.config.inverter
        rows, tokens = max(inverter.batch_size, self.config.data.eval_batch_size), inverter.sequence_tokens
        words = self.vocabulary * min(inverter.width, self.width) * FLOAT
        vectors = 2 * min(RANKED, self.vocabulary) * inverter.width
        encoder = inverter.layers * (32 * inverter.width + 2 * inverter.heads * tokens)
        return words + self._chain(rows, tokens) + rows * tokens * (vectors + encoder) * FLOAT


def _clean(tokens: int, split_ratio: list[float]) -> int:
    """Tokens of a block that are scored, at most."""
    return max(1, tokens - int(tokens * split_ratio[0]))
