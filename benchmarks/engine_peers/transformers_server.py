"""`generate` of transformers behind HTTP, what waits in one batch: … FOLDER PORT THREADS"""

import queue
import sys
import threading
import time
from typing import Any

import torch
from tiny_server import Job, serve
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

GATHER_S = 0.03  # requests that come together are computed together


class Batcher:
    """Pads to the left; requests that come meanwhile wait for the whole batch."""

    def __init__(self, folder: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, job: Job) -> None:
        self._inbox.put(job)

    def _run(self) -> None:
        while True:
            jobs = [self._inbox.get()]
            time.sleep(GATHER_S)  # noqa: TID251 - a program of its own, without our clock
            while not self._inbox.empty():
                jobs.append(self._inbox.get())
            self._generate(jobs)

    def _generate(self, jobs: list[Job]) -> None:
        longest = max(len(job.prompt) for job in jobs)
        padding = [longest - len(job.prompt) for job in jobs]
        tokens = torch.tensor([[0] * p + job.prompt for p, job in zip(padding, jobs, strict=True)])
        mask = torch.tensor([[0] * p + [1] * (longest - p) for p in padding])
        most = max(job.max_tokens for job in jobs)
        with torch.inference_mode():
            self._model.generate(
                tokens,
                attention_mask=mask,
                max_new_tokens=most,
                min_new_tokens=most,
                do_sample=False,
                pad_token_id=0,
                streamer=_Streamer(jobs, self._tokenizer),
            )
        for job in jobs:
            job.pieces.put(None)


class _Streamer(BaseStreamer):
    """Hands each step's tokens to their requests; the first call repeats the prompts."""

    def __init__(self, jobs: list[Job], tokenizer: Any) -> None:
        self._jobs = jobs
        self._tokenizer = tokenizer
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        for job, token in zip(self._jobs, value.tolist(), strict=True):
            if job.tokens < job.max_tokens:
                job.push(self._tokenizer.decode([token]) or " ", 1)

    def end(self) -> None:
        pass


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    serve(int(sys.argv[2]), Batcher(sys.argv[1]).submit)
