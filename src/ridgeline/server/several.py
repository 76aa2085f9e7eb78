"""Several texts of one request, as KServe's and Vertex AI's routes ask for them. Must not know either's format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ridgeline.engine.records import Terms
from ridgeline.server.http import Call
from ridgeline.server.jobs import Job
from ridgeline.server.schema import warn
from ridgeline.server.service import Choice, best, collect


@dataclass(frozen=True)
class Asked:
    """One of the texts: the likeliest of a job's choices, behind `prefix`."""

    job: Job
    prefix: str
    headers: dict[str, str]
    terms: Terms

    def text(self, candidates: list[Choice]) -> str:
        return self.prefix + best(candidates, 1)[0].text


async def texts(call: Call, understand: Callable[[], list[Asked]], headers: dict[str, str]) -> list[str]:
    """What `understand` finds, all on the same terms, answered in its order. Warnings join `headers`, each once."""

    def submit() -> list[Asked]:
        found = understand()
        jobs = [one.job for one in found]
        said = [*(said for one in found for said in one.headers.values()), *call.stream.check(jobs)]
        warn(headers, *dict.fromkeys(said))
        call.stream.submit(jobs, found[0].terms)
        return found

    found = await call.stream.run(submit)
    done = await collect(call.stream, [one.job.params.n for one in found])
    return [one.text(candidates) for one, candidates in zip(found, done, strict=True)]
