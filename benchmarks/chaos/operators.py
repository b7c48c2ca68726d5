"""Those who deploy and delete, who make and revoke keys, and who watch that bounds are kept."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.chaos.client import LARGE, MODEL, Client, pause
from benchmarks.chaos.records import Ending, Records

GUEST = "guest"  # a model that comes and goes
MOST_REPLICAS = 2
REVOKED_WITHIN_S = 5.0
_SERVES = frozenset({"assigned", "starting", "ready"})
_LOOK_S = 0.3


def spec(model: Path, *, grace_s: int, name: str = MODEL) -> dict[str, Any]:
    """What is deployed; another grace is another revision."""
    return {
        "name": name,
        "source": f"file://{model}",
        "shared": True,
        "scaling": {"grace": grace_s, "max": MOST_REPLICAS, "target_concurrency": 2, "sleep": 20},
        "limits": {"max_concurrency": 4},
        "timeouts": {"cold_start": 40, "queue": 30, "execution": 40},
    }


@dataclass
class Operators:
    """Each a loop until it is `over`; what they must find at the end is in their fields."""

    client: Client
    records: Records
    model: Path
    over: asyncio.Event
    seed: int
    traffic: dict[str, int] | None = None  # percent by revision; None where nobody knows
    revoked: list[tuple[str, float]] = field(default_factory=list)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._release(random.Random(f"{self.seed} releases")))
            tasks.create_task(self._make_and_revoke_keys(random.Random(f"{self.seed} keys")))
            tasks.create_task(self._come_and_go(random.Random(f"{self.seed} guests")))
            tasks.create_task(self._watch())

    async def _release(self, dice: random.Random) -> None:
        """Deploys, splits the requests between revisions, and goes back, in turns."""
        model = f"/v1/models/{MODEL}"
        while not self.over.is_set():
            await pause(self.over, dice.uniform(4, 12))
            match dice.randrange(5):
                case 0:
                    await self._redirect("POST", f"{model}/rollback", {})
                case 1 | 2:
                    shown = await self._send("GET", f"{model}/revisions", None)
                    if shown is None or shown.status_code != 200:
                        continue
                    revisions = [it["revision"] for it in shown.json()["data"]]
                    chosen = dice.sample(revisions, min(2, len(revisions)))
                    percents = (70, 30) if len(chosen) == 2 else (100,)
                    split = dict(zip(chosen, percents, strict=True))
                    await self._redirect("PUT", f"{model}/traffic", {"traffic": split})
                case _:
                    wanted = spec(self.model, grace_s=dice.choice((1, 2, 3)))
                    await self._redirect("PUT", model, wanted)

    async def _redirect(self, method: str, path: str, body: Any) -> None:
        """Notes where requests go after it; nobody knows if no answer came."""
        before, self.traffic = self.traffic, None
        sent = await self._send(method, path, body)
        if sent is None or sent.status_code == 503:
            return
        match sent.status_code, path.rpartition("/")[2]:
            case 200, _:
                shares = sent.json()["traffic"]
                self.traffic = {it["revision"]: it["percent"] for it in shares}
            case 202, _:
                self.traffic = {sent.json()["revision"]: 100}
            case 409, "rollback":  # there is nothing to go back to
                self.traffic = before
            case _:
                self.records.wrongs.append(f"{method} {path} was answered {sent.text}")

    async def _come_and_go(self, dice: random.Random) -> None:
        """A model is called from its deployment to its deletion, and not there after it."""
        while not self.over.is_set():
            await pause(self.over, dice.uniform(2, 8))
            guest = spec(self.model, grace_s=dice.choice((0, 1, 2)), name=GUEST)
            if not await self._insist("PUT", guest, {202}):
                return
            for _ in range(dice.randrange(4)):
                await self.client.ask(dice.randrange(LARGE), model=GUEST)
            if not await self._insist("DELETE", None, {204, 404}):
                return
            shown = await self._send("GET", f"/v1/models/{GUEST}", None)
            if shown is not None and shown.status_code not in {404, 503}:
                self.records.wrongs.append(f"a deleted model was answered {shown.text}")

    async def _insist(self, method: str, body: Any, statuses: set[int]) -> bool:
        """Sends it until it is done; False if it is refused."""
        while True:
            sent = await self._send(method, f"/v1/models/{GUEST}", body)
            if sent is not None and sent.status_code in statuses:
                return True
            if sent is not None and sent.status_code != 503:
                self.records.wrongs.append(f"{method} of {GUEST} was answered {sent.text}")
                return False
            await asyncio.sleep(0.1)

    async def _make_and_revoke_keys(self, dice: random.Random) -> None:
        while not self.over.is_set():
            await pause(self.over, dice.uniform(1, 5))
            made = await self._send("POST", "/v1/keys", {"name": "chaos", "is_admin": True})
            if made is None or made.status_code != 201:
                continue
            key, key_id = made.json()["key"], made.json()["status"]["key_id"]
            used = await self.client.ask(dice.randrange(LARGE), key=key)
            if used.code == "unauthorized":
                self.records.wrongs.append(f"the key {key_id} was made and is refused")
            gone = await self._send("DELETE", f"/v1/keys/{key_id}", None)
            if gone is not None and gone.status_code == 200:
                self.revoked.append((key, time.monotonic()))
            await self._try_revoked(dice)

    async def _try_revoked(self, dice: random.Random) -> None:
        old = [key for key, at in self.revoked if time.monotonic() - at > REVOKED_WITHIN_S]
        if old:
            await self.refused(dice.choice(old))

    async def refused(self, key: str) -> None:
        """A key that was revoked is answered 401, whatever happened since."""
        try:
            headers = {"authorization": f"Bearer {key}"}
            sent = await self.client.send("GET", "/v1/models", headers=headers)
        except httpx.TransportError:
            return
        if sent.status_code not in {401, 503}:
            self.records.wrongs.append(f"a revoked key was answered {sent.status_code}")

    async def _watch(self) -> None:
        while not self.over.is_set():
            await pause(self.over, _LOOK_S)
            shown = await self._send("GET", f"/v1/models/{MODEL}", None)
            if shown is None or shown.status_code == 503:
                continue
            if shown.status_code != 200:
                self.records.wrongs.append(f"{MODEL} was answered {shown.text}")
                continue
            self._check_bounds(shown.json())

    def _check_bounds(self, status: dict[str, Any]) -> None:
        serving: dict[str, int] = {}
        for replica in status["replicas"]:
            if replica["state"] in _SERVES:
                serving[replica["revision"]] = serving.get(replica["revision"], 0) + 1
        for revision, count in serving.items():
            if count > MOST_REPLICAS:
                self.records.wrongs.append(f"{revision} has {count} replicas")
        if min(status["in_flight"], status["waiting"]) < 0:
            self.records.wrongs.append("a counter is negative")

    async def _send(self, method: str, path: str, body: Any) -> httpx.Response | None:
        try:
            return await self.client.send(method, path, json=body)
        except httpx.TransportError:
            return None


async def is_calm(client: Client) -> bool:
    """One of each kind of request is answered, and rightly."""
    outcomes = [await client.ask(0), await client.stream(1)]
    return all(outcome.ending is Ending.ANSWERED for outcome in outcomes)
