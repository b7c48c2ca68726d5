"""The engine's state of one request."""

from dataclasses import dataclass, field

from worker.engine.request import Pooling, Request


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens known, tokens computed, and where their keys and values lie.

    A sequence has no phases: it runs until `num_computed_tokens` has caught up with `num_tokens`,
    and each catching up yields one more token. One with a `pooling` yields a vector instead, made
    of the states of its last token or of all. Owned by the scheduler.

    `num_read_tokens` are the first ones of the prompt whose states have been read, where the
    request wants something of all of them: log-probabilities, or their mean. `num_cached_tokens`
    are those that were in the cache when it was first admitted. `block_names` are the prefix
    cache's, of blocks that its tokens fill.

    `draft_token_ids` are guesses of what follows its tokens. The scheduler makes room for the first
    of `num_drafts_wanted` in a step, which are there when the step is computed; which were right is
    told to the scheduler, and then there are none.

    The block table is a new list whenever the sequence is admitted; while it runs, blocks are only
    appended, and it keeps its lane.
    """

    request: Request
    seed: int
    pooling: Pooling | None = None
    arrival: int = 0
    token_ids: list[int] = field(init=False)
    draft_token_ids: list[int] = field(default_factory=list)
    num_drafts_wanted: int = 0
    num_computed_tokens: int = 0
    num_read_tokens: int = 0
    num_cached_tokens: int | None = None
    block_names: list[bytes] = field(default_factory=list)
    block_table: list[int] = field(default_factory=list)
    lane: int | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    def rank(self) -> tuple[int, int]:
        """Lower goes first, and keeps its blocks longer."""
        return self.request.priority, self.arrival

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def tenant(self) -> str:
        return self.request.tenant

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_tokens_to_come(self) -> int:
        """The most that may still be generated."""
        return self.request.max_tokens - self.num_generated_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_reusable_tokens(self) -> int:
        """Its first tokens that need not be computed, where their keys and values are known.

        The last one gives the next token or the vector; all of a prompt give its log-probabilities
        or its mean.
        """
        reads_all = self.wants_prompt_logits or self.pooling == "mean"
        if reads_all and self.num_read_tokens < self.num_prompt_tokens - 1:
            return self.num_read_tokens
        return self.num_tokens - 1

    def set_drafts(self, token_ids: list[int]) -> None:
        """These may follow, and all are wanted."""
        self.draft_token_ids, self.num_drafts_wanted = token_ids, len(token_ids)

    @property
    def wants_prompt_logits(self) -> bool:
        return self.request.prompt_logprobs is not None
