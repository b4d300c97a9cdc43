"""A device's part in the rounds of a population: check in, train or evaluate, report, over and over.

Whatever ends the process, the next one goes on where it was (docs/device.md): an update that was not answered is sent
again, a training goes on from its progress when the server gives the round's token again, and an evaluation, which is
short, begins again.
"""

from __future__ import annotations

import enum
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle import Bundle
from device_runtime.bundle_cache import BundleCache
from device_runtime.deadline import LONGEST, Clocks, Deadline
from device_runtime.device_bundles import DeviceBundles
from device_runtime.device_state import DeviceState, SpooledUpdate
from device_runtime.errors import InputError, NetworkError, TurnedAwayError, UpdateError
from device_runtime.examples import Examples, NoExamplesError, has_examples, load_examples
from device_runtime.feedback import ErrorFeedback
from device_runtime.installation import Installation
from device_runtime.interpreter import runtime_version
from device_runtime.limits import release_memory, require_memory
from device_runtime.messages import CheckIn, Configuration, EvaluationReport, ReportReply, TaskKind
from device_runtime.progress import Position, Progress, kept_task
from device_runtime.report import encoded_report
from device_runtime.sealed import remove
from device_runtime.server_client import ServerClient
from device_runtime.trainer import StoppedError, Trainer
from device_runtime.transport import RetryPolicy
from device_runtime.watch import GivenUpError, Habits, Watch
from device_runtime.weights import WeightsFile
from device_runtime.weights_cache import WeightsCache
from device_runtime.work import ClientWork

if TYPE_CHECKING:  # cryptography is loaded only where keys are trusted
    from device_runtime.signature import TrustedKeys

_GIVEN_UP = RetryPolicy(first_wait=1.0, longest_wait=60.0)  # of asking whether a round is over that was given up


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
        examples: for each task that it takes part in, the file with its local examples, ``.npz`` or a local store;
            checked against each bundle.
        cache: folder for downloaded bundles.
        state: what is remembered of a round.
        habits: how it works.
        trusted: only bundles that are signed with one of these keys are used; None takes any.
        notice: told of what happens within a session: its name, and further fields.
        sleep, clocks, jitter: exchanged by tests.
        installation: of this device; no bundle that is older than what is installed is used. None where there is none.
    """

    def __init__(
        self,
        server: ServerClient,
        population: str,
        client: str,
        examples: Mapping[TaskKind, Path],
        cache: Path,
        state: DeviceState,
        habits: Habits | None = None,
        trusted: TrustedKeys | None = None,
        notice: Callable[..., None] = lambda event, **fields: None,
        sleep: Callable[[float], None] = time.sleep,
        clocks: Clocks | None = None,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311
        installation: Installation | None = None,
    ) -> None:
        self._server = server
        self._check_in = CheckIn(population, client, runtime_version())
        self._sources = dict(examples)
        downloaded = BundleCache(cache, trusted)
        self._bundles = downloaded if installation is None else DeviceBundles(downloaded, installation)
        self._state = state
        self._weights = WeightsCache(state.weights, notice)
        self._habits = habits or Habits()
        self._watch = Watch(self._habits, notice, sleep)
        self._feedback = ErrorFeedback(state.folder) if self._habits.error_feedback else None
        self._notice = notice
        self._sleep = sleep
        self._clocks = clocks or Clocks()
        self._jitter = jitter
        self._training = self._ending = False
        self._refusals = 0  # in a row, of a round that was given up

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

    def end(self) -> None:
        """Make an end: a training stops after its step and is saved. For a signal's handler.

        Raises:
            EndedError: at once where no training goes on, else out of `run`.
        """
        self._ending = True
        if not self._training:
            raise EndedError

    def take_part(self) -> Session:
        """One check-in and what follows from it; a rejection's retry window is waited for.

        An update that an earlier process left unanswered is reported first, in its place.
        """
        spooled = self._state.update
        if spooled is not None:
            self._watch.wait_while(self._watch.unmet)
            self._notice("update_found", round=spooled.round_number, bytes=len(spooled.data))
            return self._report_update(spooled)
        reply = self._server.check_in(replace(self._check_in, tasks=list(self._ready_for())))
        if reply.decision == "complete":
            self._state.settle()
            return Session(Outcome.COMPLETE)
        if reply.decision == "reject":
            if reply.reason in ("population", "client"):
                raise TurnedAwayError(
                    f"the server takes no part of population {self._check_in.population!r} as"
                    f" {self._check_in.client!r}: check --population and --client"
                )
            self._sleep(reply.retry_after_seconds * (1 + 0.2 * self._jitter()))
            return Session(Outcome.REJECTED, detail=reply.reason)
        if self._state.has_given_up(reply.token):  # its place in the cohort stays, until the round is over
            self._refusals += 1
            self._sleep(max(reply.retry_after_seconds, _GIVEN_UP.wait(self._refusals, self._jitter())))
            return Session(Outcome.REJECTED, detail="round_given_up")
        self._refusals = 0
        configuration = self._await_start(reply.token, reply.retry_after_seconds)
        if configuration.state == "aborted":
            self._state.settle()
            return Session(Outcome.ABORTED, reply.round_number, "it ended without this device")
        return self._work(reply.token, configuration)

    def _await_start(self, token: str, wait: float) -> Configuration:
        while True:
            self._sleep(wait)
            configuration = self._server.configuration(token, self._weights.held)
            if configuration.state != "wait":
                return configuration
            wait = configuration.retry_after_seconds

    def _work(self, token: str, configuration: Configuration) -> Session:
        work, number = ClientWork.from_json(configuration.work), configuration.round_number
        deadline = Deadline.in_seconds(work.deadline_seconds, self._clocks)
        bundle = self._bundles.get(configuration.bundle, self._server)  # verified, from here or from there
        try:
            examples = self._examples(configuration.task, bundle, token)
        except NoExamplesError as error:  # they were deleted, or have expired, since this device checked in
            self._state.settle(token)
            return Session(Outcome.ABORTED, number, str(error))
        require_memory(self._habits.limits, bundle.manifest, work, len(examples))  # before weights come in vain
        path = self._weights.get(configuration, bundle, self._server)
        release_memory()  # of decoding them
        try:
            with WeightsFile(path, bundle.manifest.tensors) as weights:
                finished = (
                    self._evaluate(bundle, weights, examples, work, number, deadline)
                    if configuration.task == "evaluation"
                    else self._train(bundle, weights, examples, work, token, configuration, deadline)
                )
        except (GivenUpError, UpdateError) as error:  # with other weights or on another day it may go well
            self._state.settle(token)
            return Session(Outcome.ABORTED, number, str(error))
        del examples  # they may be many, and a report may take long
        if isinstance(finished, EvaluationReport):
            return self._report_evaluation(token, finished, bundle.manifest.metric, deadline)
        try:
            self._state.spool(finished)
        except InputError as error:  # a disk that is full costs the safety of the update, and not the update
            self._notice("update_not_kept", round=number, reason=str(error))
        return self._report_update(finished)

    def _examples(self, task: TaskKind, bundle: Bundle, token: str) -> Examples:
        """The examples of the round with this token.

        Raises:
            NoExamplesError: there are none for this task.
        """
        if task not in self._sources:
            raise NoExamplesError(f"this device has no examples for a round of {task}, and did not offer to take part")
        kept = kept_task(self._state.progress)
        # Of a store that has grown meanwhile, a training that goes on takes what it began with.
        through = kept.get("last") if kept.get("token") == token else None
        return load_examples(self._sources[task], bundle.manifest, through)

    def _train(
        self,
        bundle: Bundle,
        weights: WeightsFile,
        examples: Examples,
        work: ClientWork,
        token: str,
        configuration: Configuration,
        deadline: Deadline,
    ) -> SpooledUpdate:
        """The round's update, encoded.

        Raises:
            GivenUpError: the deadline passed, or a limit was met.
            UpdateError: the training diverged.
        """
        manifest, number = bundle.manifest, configuration.round_number
        trainer = Trainer(bundle, self._habits.threads)
        notice = partial(self._notice, round=number)
        task = {
            "token": token,
            "round": number,
            "bundle": bundle.identity,
            "weights": configuration.weights,
            "work": replace(work, deadline_seconds=None).to_json(),
            "examples": examples.identity,
            "last": examples.last,
        }
        progress = Progress(
            self._state.progress, task, trainer.variable_sizes, self._habits.save, self._clocks.device, notice
        )
        notice("training", examples=len(examples))

        def stop(position: Position) -> str | None:
            self._watch.require_time(position.seconds, deadline)
            self._watch.require_memory(manifest)
            return "it is to end" if self._ending else self._watch.unmet()

        while True:
            self._training = True
            try:
                trained = trainer.train(weights, examples, work, number, stop, progress)
                break
            except StoppedError as stopped:
                if self._ending:
                    raise EndedError from None
                self._training = False
                notice("paused", reason=stopped.reason, steps=stopped.position.steps)
                self._watch.wait_while(self._watch.unmet, deadline)
                notice("resumed")
            finally:
                self._training = False
        del trainer  # its memory is not needed beside the update's
        release_memory()
        update = encoded_report(trained, manifest, work, self._feedback)
        until = Deadline.in_seconds(min(deadline.left, LONGEST), self._clocks)
        return SpooledUpdate(number, token, until, trained.metrics["loss"], update)

    def _evaluate(
        self,
        bundle: Bundle,
        weights: WeightsFile,
        examples: Examples,
        work: ClientWork,
        number: int,
        deadline: Deadline,
    ) -> EvaluationReport:
        """The weights' sums over the examples.

        Raises:
            GivenUpError: the deadline passed, or a limit was met.
            UpdateError: the loss is not finite.
        """
        began, paused = self._clocks.device(), 0.0

        def look() -> None:
            nonlocal paused
            now = self._clocks.device()
            self._watch.require_time(now - began - paused, deadline)
            self._watch.require_memory(bundle.manifest)
            self._watch.wait_while(self._watch.unmet, deadline)
            paused += self._clocks.device() - now

        self._notice("evaluating", round=number, examples=len(examples))
        trainer = Trainer(bundle, self._habits.threads)
        trainer.set_weights(weights, anchor=False)
        evaluation = trainer.evaluate(examples, work.batch_size or len(examples), look)
        if not (math.isfinite(evaluation.loss_sum) and math.isfinite(evaluation.correct)):
            raise UpdateError("non_finite", "the loss of these weights is not finite here")
        return EvaluationReport(number, evaluation.examples, evaluation.correct, evaluation.loss_sum)

    def _report_update(self, update: SpooledUpdate) -> Session:
        detail = f"loss {update.loss:.4f}, {len(update.data)} bytes"
        session, given_up = self._report(update.round_number, update.token, update.data, update.deadline, detail)
        if self._feedback is not None:  # before the update is forgotten: one that is still there is answered again
            self._feedback.settle(session.outcome is Outcome.REPORTED)
        self._state.settle(update.token if given_up else None)
        return session

    def _report_evaluation(self, token: str, report: EvaluationReport, metric: str, deadline: Deadline) -> Session:
        loss, mean = report.loss_sum / report.count, report.correct / report.count
        detail = f"evaluation, loss {loss:.4f}, {metric} {mean:.4f}, {report.count} predictions"
        until = Deadline.in_seconds(min(deadline.left, LONGEST), self._clocks)
        session, given_up = self._report(report.round_number, token, report, until, detail)
        self._state.settle(token if given_up else None)
        return session

    def _report(
        self, number: int, token: str, report: bytes | EvaluationReport, deadline: Deadline, detail: str
    ) -> tuple[Session, bool]:
        """How the report ended, and whether the round is given up: the server may give its token again."""
        try:
            reply: ReportReply = self._server.report(token, report, max(deadline.left, 0.0))
        except NetworkError as error:
            if deadline.left > 0:
                raise
            detail = f"the deadline passed before the server took the report: {error}"
            return Session(Outcome.ABORTED, number, detail), True
        # A duplicate is our own report whose acknowledgement was lost on the way.
        if reply.verdict == "accepted" or reply.reason == "duplicate":
            return Session(Outcome.REPORTED, number, detail), False
        detail = f"{reply.reason}: {reply.message}"
        if reply.verdict == "aborted":
            return Session(Outcome.ABORTED, number, detail), False
        return Session(Outcome.REFUSED, number, detail), True  # the server would refuse the same report again

    def _ready_for(self) -> tuple[TaskKind, ...]:
        """The tasks for which there are examples, once there are some and the conditions are met.

        Without examples no round may begin: a place in a cohort would be taken in vain.
        """
        tasks: tuple[TaskKind, ...] = ()

        def unready() -> str | None:
            nonlocal tasks
            tasks = tuple(task for task, path in self._sources.items() if has_examples(path))
            if "training" not in tasks:
                remove(self._state.progress)  # what is deleted does not stay in what was trained on it
            return self._watch.unmet() if tasks else "no local examples"

        self._watch.wait_while(unready)
        return tasks


class EndedError(BaseException):
    """The participant was told to end; like KeyboardInterrupt, nothing on the way takes it for a failure."""
