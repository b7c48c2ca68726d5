"""OpenVINO GenAI's continuous batching behind HTTP: openvino_server.py FOLDER PORT THREADS"""

import itertools
import queue
import sys
import threading

import numpy
import openvino
import openvino_genai
from tiny_server import Job, serve

IDLE_S = 0.2


class Batcher:
    """One thread steps the pipeline and hands tokens to the requests they belong to."""

    def __init__(self, folder: str, threads: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.max_num_seqs = 32
        scheduler.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}, {}
        )
        self._tokenizer = self._pipeline.get_tokenizer()
        self._inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._running: list[tuple[Job, openvino_genai.GenerationHandle]] = []
        self._ids = itertools.count()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, job: Job) -> None:
        self._inbox.put(job)

    def _run(self) -> None:
        while True:
            self._admit()
            if self._running:
                self._pipeline.step()
                self._running = [pair for pair in self._running if self._deliver(*pair)]

    def _admit(self) -> None:
        wait = not self._running
        while True:
            try:
                job = self._inbox.get(block=wait, timeout=IDLE_S)
            except queue.Empty:
                return
            wait = False
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = job.max_tokens
            config.ignore_eos = True
            config.do_sample = False
            prompt = openvino.Tensor(numpy.array([job.prompt], dtype=numpy.int64))
            handle = self._pipeline.add_request(next(self._ids), prompt, config)
            self._running.append((job, handle))

    def _deliver(self, job: Job, handle: "openvino_genai.GenerationHandle") -> bool:
        """Whether the request goes on."""
        while handle.can_read():
            for output in handle.read().values():
                tokens = list(output.generated_ids)
                job.push(self._tokenizer.decode(tokens) or " ", len(tokens))
        if handle.get_status() == openvino_genai.GenerationStatus.RUNNING:
            return True
        job.pieces.put(None)
        return False


if __name__ == "__main__":
    serve(int(sys.argv[2]), Batcher(sys.argv[1], int(sys.argv[3])).submit)
