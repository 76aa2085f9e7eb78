"""Who goes first: small pure classes over plain records, which ask nobody for the time.

A policy ranks jobs, the smallest rank first, and is told what each was given. Ranks decide who gets a step's tokens
and, when pages run short, who gives way; never what anybody's answer is.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

Rank = tuple[float, ...]

_REMEMBERED = 1024  # tenants that left


class Job(msgspec.Struct, gc=False):
    """What policies know of a sequence. `order` is that of arrival; times are in seconds."""

    order: tuple[int, int]
    tenant: str
    priority: int  # higher goes first
    prompt: int  # tokens
    ran: float  # when it arrived or last had a token
    used: int = 0  # tokens since it came to its level
    level: int = 0


class Policy(Protocol):
    """`dynamic`: ranks change while jobs wait or run. `preempts(a, b)`: a job ranked a may take the pages of one ranked
    b to start. `yields(job, b, now)`: a running job has no token in a step that reads the prompt of one ranked b."""

    dynamic: bool

    def added(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...

    def rank(self, job: Job, now: float) -> Rank: ...

    def charge(self, job: Job, tokens: int, now: float) -> None: ...

    def preempts(self, one: Rank, other: Rank) -> bool: ...

    def yields(self, job: Job, other: Rank, now: float) -> bool: ...


class FCFS:
    """First come, first served."""

    dynamic = False

    def added(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...

    def rank(self, job: Job, now: float) -> Rank:
        return job.order

    def charge(self, job: Job, tokens: int, now: float) -> None: ...

    def preempts(self, one: Rank, other: Rank) -> bool:
        return False

    def yields(self, job: Job, other: Rank, now: float) -> bool:
        return False


class Priority:
    """Higher priorities first, then first come. Each `age_s` without a token counts as one, so that none starves."""

    dynamic = True

    def __init__(self, age_s: float = 10.0) -> None:
        self.age_s = age_s

    def added(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...

    def rank(self, job: Job, now: float) -> Rank:
        return (-(job.priority + (now - job.ran) // self.age_s), *job.order, -job.priority)

    def charge(self, job: Job, tokens: int, now: float) -> None:
        job.ran = now

    def preempts(self, one: Rank, other: Rank) -> bool:
        return one[-1] < other[-1]  # as they were given: age takes places, not pages

    def yields(self, job: Job, other: Rank, now: float) -> bool:
        return False


class MLFQ:
    """Skip-join multi-level feedback queues (FastServe, arXiv:2305.05920), with tokens for time.

    Level i allows `quantum` * 2^i tokens. A job joins the first level that allows its whole prompt, and falls by one
    when it has used its level up. One that has had nothing for `starve_s` begins again at the top.
    """

    dynamic = True

    def __init__(self, quantum: int = 64, levels: int = 10, starve_s: float = 3.0) -> None:
        self.quantum, self.levels, self.starve_s = quantum, levels, starve_s

    def added(self, job: Job) -> None:
        while job.level < self.levels - 1 and self.quantum << job.level < job.prompt:
            job.level += 1

    def ended(self, job: Job) -> None: ...

    def rank(self, job: Job, now: float) -> Rank:
        if job.level and now - job.ran > self.starve_s:
            job.level, job.used, job.ran = 0, 0, now
        return (job.level, *job.order)

    def charge(self, job: Job, tokens: int, now: float) -> None:
        job.ran = now
        job.used += tokens
        if job.used >= self.quantum << job.level and job.level < self.levels - 1:
            job.level, job.used = job.level + 1, 0

    def preempts(self, one: Rank, other: Rank) -> bool:
        return one[0] < other[0]

    def yields(self, job: Job, other: Rank, now: float) -> bool:
        return False


class Fair:
    """Fair queueing by tenant over the tokens computed for each (VTC, Sheng et al., OSDI 2024).

    The tenant that was given least, by its weight, goes first; jobs of a tenant in order of arrival. One that comes
    back is owed what others had while it was away, but at most `burst` tokens; a new one nothing. While it reads its
    prompt, answers of those that were given more wait, up to `patience_s` for each token; and one that is owed more
    than `burst` takes pages.
    """

    dynamic = True

    def __init__(
        self, weights: Mapping[str, float] | None = None, burst: float = 4096.0, patience_s: float = 0.5
    ) -> None:
        self.weights, self.burst, self.patience_s = weights or {}, burst, patience_s
        self._given: dict[str, float] = {}  # tokens by tenant, of those that are there
        self._gone: OrderedDict[str, float] = OrderedDict()  # of those that were, the last ones
        self._level = 0.0  # the least that anybody was given, when last somebody was there
        self._jobs: Counter[str] = Counter()

    def added(self, job: Job) -> None:
        tenant = job.tenant
        if not self._jobs[tenant]:
            self._level = min(self._given.values(), default=self._level)
            self._given[tenant] = max(self._gone.pop(tenant, self._level), self._level - self.burst)
        self._jobs[tenant] += 1

    def ended(self, job: Job) -> None:
        tenant = job.tenant
        self._jobs[tenant] -= 1
        if not self._jobs[tenant]:
            self._level = min(self._given.values())
            del self._jobs[tenant]
            self._gone[tenant] = self._given.pop(tenant)
            if len(self._gone) > _REMEMBERED:
                self._gone.popitem(last=False)

    def rank(self, job: Job, now: float) -> Rank:
        return (self._given[job.tenant], *job.order)

    def charge(self, job: Job, tokens: int, now: float) -> None:
        job.ran = now
        self._given[job.tenant] += tokens / self.weights.get(job.tenant, 1.0)

    def preempts(self, one: Rank, other: Rank) -> bool:
        return one[0] + self.burst < other[0]

    def yields(self, job: Job, other: Rank, now: float) -> bool:
        return self._given[job.tenant] > other[0] and now - job.ran < self.patience_s


POLICIES: dict[str, Callable[[], Policy]] = {"fcfs": FCFS, "priority": Priority, "mlfq": MLFQ, "fair": Fair}
