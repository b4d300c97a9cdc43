"""What a device reports: the change that its training made, encoded."""

from __future__ import annotations

import io

from device_runtime.bundle import Manifest
from device_runtime.codec import UpdateHeader, codec_named, write_update
from device_runtime.feedback import ErrorFeedback
from device_runtime.trainer import Trained
from device_runtime.work import ClientWork


def encoded_report(
    trained: Trained, manifest: Manifest, work: ClientWork, feedback: ErrorFeedback | None = None
) -> bytes:
    """A training's update, encoded as its work says; the change of the weights is there one tensor at a time.

    With error feedback, which keeps what the encoding loses, all of it is there at once.

    Raises:
        InputError: the codec is not known.
        UpdateError: a value is not finite (reason ``non_finite``).
        IntegrityError: the training's progress was damaged meanwhile.
    """
    header = UpdateHeader(
        codec_named(work.codec).number,
        manifest.model_id,
        trained.round_number,
        trained.weight,
        work.seed,
        trained.metrics,
    )
    file = io.BytesIO()
    if feedback is None:
        write_update(file, header, trained.deltas())
        return file.getvalue()
    corrected = feedback.corrected(trained.deltas(), manifest)
    write_update(file, header, corrected)
    feedback.encoded(corrected, file.getvalue(), manifest)
    return file.getvalue()
