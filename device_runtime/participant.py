"""A device's part in the rounds of a population: check in, train, report, over and over."""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle import Bundle
from device_runtime.bundle_cache import BundleCache
from device_runtime.codec import encode
from device_runtime.device_bundles import DeviceBundles
from device_runtime.errors import NetworkError, UpdateError
from device_runtime.examples import load_examples
from device_runtime.installation import Installation
from device_runtime.interpreter import runtime_version
from device_runtime.messages import CheckIn, Configuration, weights_path
from device_runtime.server_client import ServerClient
from device_runtime.trainer import DeadlineError, Trainer
from device_runtime.weights import load_weights
from device_runtime.work import ClientWork

if TYPE_CHECKING:  # cryptography is loaded only where keys are trusted
    from device_runtime.signature import TrustedKeys

_HEADER_ROOM = 1 << 16  # what a weights file may have beyond the tensors' bytes


class Outcome(enum.Enum):
    """How one check-in ended."""

    REPORTED = "reported"
    ABORTED = "aborted"
    REFUSED = "refused"
    REJECTED = "rejected"
    COMPLETE = "complete"


@dataclass(frozen=True)
class Session:
    """One check-in's outcome, with the round's number and a line that says more."""

    outcome: Outcome
    round_number: int = 0
    detail: str = ""


class Participant:
    """A device with its local examples.

    Args:
        server: where to check in.
        population: the population to take part in.
        client: this device's name there.
        data: ``.npz`` file with the local examples; checked against each bundle.
        cache: folder for downloaded bundles.
        threads: of the interpreter.
        trusted: only bundles that are signed with one of these keys are used; None takes any.
        sleep, clock, jitter: exchanged by tests.
        installation: of this device; no bundle that is older than what is installed is used. None where there is none.
    """

    def __init__(
        self,
        server: ServerClient,
        population: str,
        client: str,
        data: Path,
        cache: Path,
        threads: int = 1,
        trusted: TrustedKeys | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311
        installation: Installation | None = None,
    ) -> None:
        self._server = server
        self._check_in = CheckIn(population, client, runtime_version())
        self._data = data
        downloaded = BundleCache(cache, trusted)
        self._bundles = downloaded if installation is None else DeviceBundles(downloaded, installation)
        self._threads = threads
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        self._loaded: tuple[Bundle, Trainer] | None = None

    def run(self, rounds: int | None, tell: Callable[[Session], None]) -> None:
        """Take part until `rounds` reports were accepted (None: no limit) or the task is complete.

        Args:
            rounds: how many accepted reports are enough.
            tell: called after each check-in.

        Raises:
            PocketfedError: what can't be helped by trying again: no server, a broken bundle, unfit examples.
        """
        reported = 0
        while rounds is None or reported < rounds:
            session = self.take_part()
            tell(session)
            if session.outcome is Outcome.COMPLETE:
                return
            reported += session.outcome is Outcome.REPORTED

    def take_part(self) -> Session:
        """One check-in and what follows from it; a rejection's retry window is waited for."""
        reply = self._server.check_in(self._check_in)
        if reply.decision == "complete":
            return Session(Outcome.COMPLETE)
        if reply.decision == "reject":
            if reply.reason in ("population", "client"):
                raise NetworkError(
                    f"the server takes no part of population {self._check_in.population!r} as"
                    f" {self._check_in.client!r}: check --population and --client"
                )
            self._sleep(reply.retry_after_seconds * (1 + 0.2 * self._jitter()))
            return Session(Outcome.REJECTED, detail=reply.reason)
        configuration = self._await_start(reply.token, reply.retry_after_seconds)
        if configuration.state == "aborted":
            return Session(Outcome.ABORTED, reply.round_number, "it ended without this device")
        return self._train_and_report(reply.token, configuration)

    def _await_start(self, token: str, wait: float) -> Configuration:
        while True:
            self._sleep(wait)
            configuration = self._server.configuration(token)
            if configuration.state != "wait":
                return configuration
            wait = configuration.retry_after_seconds

    def _train_and_report(self, token: str, configuration: Configuration) -> Session:
        started = self._clock()
        work, number = ClientWork.from_json(configuration.work), configuration.round_number
        bundle, trainer = self._load(configuration.bundle)
        manifest = bundle.manifest
        limit = 4 * manifest.parameters + _HEADER_ROOM
        content = self._server.download(weights_path(configuration.weights), configuration.weights, limit)
        weights = load_weights(content, manifest.tensors, "weights from the server")
        examples = load_examples(self._data, manifest)

        def expired() -> bool:
            return work.deadline_seconds is not None and self._clock() - started > work.deadline_seconds

        try:
            update = trainer.train(weights, examples, work, number, expired)
            encoded = encode(update, manifest.tensors, manifest.model_id, work.codec, work.seed)
        except DeadlineError:
            return Session(Outcome.ABORTED, number, "the deadline passed during the training")
        except UpdateError as error:  # this round's work diverged on these examples; another round may not
            return Session(Outcome.ABORTED, number, str(error))
        reply = self._server.report(token, encoded)
        # A duplicate is our own report whose acknowledgement was lost on the way.
        if reply.verdict == "accepted" or reply.reason == "duplicate":
            return Session(Outcome.REPORTED, number, f"loss {update.metrics['loss']:.4f}, {len(encoded)} bytes")
        outcome = Outcome.ABORTED if reply.verdict == "aborted" else Outcome.REFUSED
        return Session(outcome, number, f"{reply.reason}: {reply.message}")

    def _load(self, identity: str) -> tuple[Bundle, Trainer]:
        if self._loaded is None or self._loaded[0].identity != identity:
            bundle = self._bundles.get(identity, self._server)
            self._loaded = bundle, Trainer(bundle, self._threads)
        return self._loaded
