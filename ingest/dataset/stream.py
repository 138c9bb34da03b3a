"""A job as a stream of samples, without torch: JAX, NumPy or a plain loop iterate it as it is, and ``streaming.py``
makes it a torch dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from ingest.dataset import relay, resume, samples
from ingest.dataset.arrival import Arriving
from ingest.dataset.epoch import Epoch
from ingest.dataset.feeds import Feeds
from ingest.dataset.library import Library
from ingest.dataset.mixture import Mixture
from ingest.dataset.options import Options, taking
from ingest.dataset.protocols import Job
from ingest.dataset.resume import Mark, State
from ingest.dataset.samples import Reading
from ingest.errors import UsageError
from ingest.settings import local_world, rank_and_world


def rank_here(rank: int | None, world: int | None) -> tuple[int, int, int]:
    """This process's rank, the number of ranks, and how many of them are on its node (1 where nobody says): as given,
    else the environment's."""
    if rank is not None and world is not None:
        return rank, world, 1
    return *rank_and_world(), local_world()


class Stream:
    """The samples of a job or of a mixture (:func:`ingest.mix`), from the moment the first shard of its order landed.

    The order of an epoch is a pure function of ``seed``, the epoch and the job: never of what arrived first, nor of how
    many ranks and DataLoader workers there are. Global batches are the same on 1 rank and on 8, and resume is exact
    under any other layout. One thread and one Redis connection per rank follow a job; DataLoader workers (fork,
    forkserver or spawn) ask that thread over a private socket and open no connection.

    - ``shuffle``: ``"files"`` permutes files (within windows of ``shuffle_files`` of the job's order); ``"window"``,
      which is ``True``, also mixes samples with their neighbours (within about ``shuffle_window``); ``"blocks"`` mixes
      all samples of as many whole files as have ``shuffle_window`` samples.
    - ``order="arrival"`` reads files as they land, whatever the order. There is no state then; see
      ``docs/dataset.md`` for what holds all the same.
    - ``batch_size`` is your DataLoader's own. With several workers it is needed for the exact order of batches: a
      DataLoader does not tell it to its workers. Without it, samples rather than batches go from worker to worker.
    - ``streams``: so many files are read in turn, a sample each. With as many as nodes, or a multiple, each node needs
      the files of its own streams only. It is part of the order: choose it once.
    - ``tail``: with ``"pad"`` ranks that would have a sample less have their last one twice; with ``"drop"`` what does
      not divide evenly is left out; with ``"uneven"`` the first ranks have one more.
    - ``set_epoch(n)`` before an epoch gives it another order. Without it, the epoch that was set last is repeated.
    - ``state_dict()`` and ``load_state_dict()``: see there; StatefulDataLoader uses them by itself.
    - ``format`` is one of ``ingest.dataset.formats.FORMATS``; by default the extension of each source's name decides.
      ``columns`` selects columns of tables.
    - ``decode=True`` decodes fields by extension (``ingest.dataset.formats.decoders.DECODERS``); a dict adds to that
      table: ``{"jpg": function of bytes}``.
    - ``on_bad``: a sample that cannot be decoded raises DataError (``"raise"``), is left out and logged (``"skip"``;
      not where ranks must have as many), or is what your function of the DataError gives instead.
    - ``read=function(path)`` gives a file's samples instead of all that; they are listed in memory, file by file. It
      and the decoders must pickle under spawn.
    - ``open_files`` are open at once at most, in each process: 8 more than ``streams``.
    - ``timeout`` is how many seconds an iterator waits for the next shard of its order before WaitTimeout.
    - ``on_failure="raise"`` raises JobFailed, naming source and cause, when the order reaches a file that failed, and
      as soon as the order is complete where a source could not even be planned; ``"skip"`` goes on without them. A
      cancelled job is always an error.
    - The files stay in the store until ``close()`` or the end of the dataset or its process. With ``keep=False`` only
      those that are read now and next do, so that a job may be larger than the store: what was evicted is fetched again
      when its turn comes. A file that is gone or cut short when it is opened is fetched again, once.
    - ``verify=True`` also compares each file with its digest when it is first opened on a machine.
    - ``rank`` and ``world_size`` come from torch.distributed where it is initialised, else from RANK and WORLD_SIZE.

    Iterating raises WaitTimeout, JobFailed, DataError, NotLocalError, StoreError, ResumeError or LedgerUnavailable. Out
    of a DataLoader worker they come with their class and message, without their fields. The dataset shows the job as it
    first ends: after ``job.retry()``, make a new one.
    """

    @taking(Options)
    def __init__(self, job: Job | Mixture, options: Options) -> None:
        mixture = Mixture.of(job)
        self._options, self._recipe = options, options.recipe(mixture)
        self._reading: Reading | None = None  # of this process, the one that began last
        self._loaded: State | None = None  # by a DataLoader into its worker's own copy
        share = partial(type(self).rank_of, options.rank, options.world_size)
        self._feeds = Feeds(
            mixture.jobs, share, timeout_s=options.timeout, keep=options.keep, batch_size=options.batch_size
        )
        # Of who knows only from the outside how far its workers have come.
        self._outside: tuple[Epoch, list[Library]] | None = None

    @staticmethod
    def rank_of(rank: int | None, world: int | None) -> tuple[int, int, int]:
        """See :func:`rank_here`; asked when an iteration begins."""
        return rank_here(rank, world)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the iterations that begin from now on, in persistent DataLoader workers too."""
        self._feeds.set_epoch(int(epoch))

    def state_dict(self, samples_seen: int | None = None) -> dict[str, Any]:
        """Where this epoch stands: a small dict, for a checkpoint of any one rank.

        Without DataLoader workers, and under StatefulDataLoader, the dataset knows. A plain DataLoader with workers
        does not say what it has handed out: give ``samples_seen``, how many samples this rank has taken from the loader
        since its iteration began. Every rank must have taken as many. Raises :class:`UsageError` where it cannot be
        exact.
        """
        self._options.check_exact()
        if samples_seen is not None:
            return self._seen(samples_seen).to_json()
        if self._reading is not None:
            return self._reading.state().to_json()
        if self._loaded is not None:
            return self._loaded.to_json()
        epoch, state = self._feeds.lead("state_dict").standing()
        if state:
            return dict(state)
        return State(self._recipe.of(epoch), tuple(map(Mark, self._feeds.jobs))).to_json()

    def _seen(self, samples_seen: int) -> State:
        feed = self._feeds.lead("state_dict(samples_seen)")
        if samples_seen < 0:
            raise UsageError(f"samples_seen={samples_seen}: how many samples this rank has taken, 0 or more")
        if self._options.on_bad == "skip":
            raise UsageError("with on_bad='skip' samples_seen does not say which were taken: use StatefulDataLoader")
        epoch, begun = feed.begun
        start = State.from_json(begun).samples if begun else 0
        if self._outside is None or self._outside[0].recipe.epoch != epoch:
            libraries = [Library(follower, self._options) for follower in self._feeds.followers(ExitStack())]
            order = Epoch(dict(zip(self._feeds.jobs, libraries, strict=True)), self._recipe.of(epoch))
            self._outside = order, libraries
        order, libraries = self._outside
        try:
            place = start + samples_seen * feed.share()[1]
            order.come_to(place)  # all of its files have landed
            return resume.at(order, place)
        finally:
            for library in libraries:
                library.close()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: the next iteration begins at that place of that epoch, exactly, also under another number
        of ranks or workers, on another node, or with a new job of the same sources. Load it before the loader is
        iterated.

        Raises :class:`UsageError` when the dataset is made in another way than then; iterating raises
        :class:`ResumeError` when the files are not those of then.
        """
        self._options.check_exact()
        loaded = State.from_json(state).fits(self._recipe)
        if not self._feeds.is_here:
            self._loaded = loaded
            return
        if loaded.part is not None:
            raise UsageError("that is one worker's part: load StreamingDataset.state_of(the loader's state_dict())")
        self._feeds.set_epoch(loaded.recipe.epoch, loaded.to_json())
        self._reading = None

    @staticmethod
    def state_of(loader_state: Mapping[str, Any]) -> dict[str, Any]:
        """The dataset's own state out of ``StatefulDataLoader.state_dict()``: what :meth:`load_state_dict` takes under
        any other number of workers and ranks. With several workers the dataset needs ``batch_size``."""
        return samples.elastic(loader_state).to_json()

    def stats(self) -> dict[str, Any]:
        """What feeding has cost this rank since the dataset was made: ``samples`` and ``files`` read, their ``bytes``,
        ``hits`` (files that were in the store before the job) and ``hit_rate``, ``waits`` for files that had not
        landed, ``waited_s`` over all workers and ``longest_wait_s``, ``first_sample_s``, ``samples_per_s``. DataLoader
        workers report with each file that they open, and at the end of the epoch."""
        return self._feeds.stats()

    def write_scalars(self, writer: Any, step: int) -> None:
        """:meth:`stats` as TensorBoard scalars ``ingest/NAME``: ``writer`` is a
        ``torch.utils.tensorboard.SummaryWriter``, or whatever else has ``add_scalar(tag, value, step)``."""
        for name, value in self.stats().items():
            if value is not None:
                writer.add_scalar(f"ingest/{name}", value, step)

    def close(self) -> None:
        """Let go of thread, connection, socket and files; the dataset's end does the same. Who iterates then gets an
        error."""
        self._feeds.close()

    def __iter__(self) -> Iterator[Any]:
        return self._stream(0, 1)

    def _in_worker(self, worker: int, workers: int) -> Iterator[Any]:
        asked = relay.watched()
        with relay.relayed():
            stream = self._stream(worker, workers)
        return relay.relaying(stream, asked)

    def _stream(self, worker: int, workers: int) -> Iterator[Any]:
        """Begun at once, not with the first sample: what is asked for its state before that must know the epoch."""
        loaded, self._loaded = self._loaded, None
        with ExitStack() as lines:
            followers = self._feeds.followers(lines)
            if self._options.order == "arrival":
                return self._held(Arriving(followers[0], self._options, self._recipe, worker, workers), lines.pop_all())
            self._reading = Reading(followers, self._options, self._recipe, worker, workers, loaded)
            return self._held(self._reading, lines.pop_all())

    def _held(self, reading: Iterable[Any], lines: ExitStack) -> Iterator[Any]:
        """Holds the dataset for as long as somebody iterates: its end would close the feeds."""
        with lines:
            yield from reading

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reading": None, "_outside": None}
