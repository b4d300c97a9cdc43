"""The database's tables, as the latest migration leaves them (`aggregation_server.storage.migrations`)."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

METADATA = MetaData()

# One row: what all servers on the database share. Whoever changes anything locks it first.
FLEET = Table(
    "fleet",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("model_id", String(32), nullable=False),
    Column(
        "clock", Float, nullable=False
    ),  # seconds that servers have run, see `aggregation_server.coordination.clock`
    Column("paused", Boolean, nullable=False),
    Column("token_key", LargeBinary, nullable=False),
    Column("number", Integer, nullable=False),  # of the version that is in force
    Column("weights", ForeignKey("weights.sha256"), nullable=False),
    Column("initial_weights", ForeignKey("weights.sha256"), nullable=False),
    Column("released", Integer),  # number of the version for users
    Column("spool", String(32)),  # identity of the folder with the reports
    Column("counts", JSON, nullable=False),  # of all rounds that are over
)

# Those that can be had. A version that is let go of leaves no row: rounds tell of it.
WEIGHTS = Table(
    "weights",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

# How a version reaches devices in fewer bytes.
ENCODED_WEIGHTS = Table(
    "encoded_weights",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False, index=True),
    Column("weights", String(64), nullable=False),
    Column("base", String(64), nullable=False),
    Column("data", LargeBinary, nullable=False),
)

ROUNDS = Table(
    "rounds",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("task", String(16), nullable=False),  # training, evaluation or rollback
    Column("phase", String(16), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("since", Float, nullable=False),
    Column("opened", Float, nullable=False),
    Column("offered", Integer, nullable=False),
    Column("cohort", Integer, nullable=False),
    Column("reported", Integer, nullable=False),
    Column("counts", JSON, nullable=False),
    # Known when it is over.
    Column("weights", String(64)),  # may have been let go of
    Column("started", Float),
    Column("ended", Float),
    Column("seconds", Float),
    Column("loss", Float),
    Column("accuracy", Float),
    Column("examples", BigInteger),
    Column("clients", Integer),
)
OVER = ROUNDS.c.phase.in_(("committed", "abandoned"))
MADE_A_VERSION = (ROUNDS.c.phase == "committed") & (ROUNDS.c.task != "evaluation")
# A version is made once, and one round is open: whatever servers do, the database holds them to it.
Index(
    "one_commit_a_version",
    ROUNDS.c.number,
    unique=True,
    sqlite_where=MADE_A_VERSION,
    postgresql_where=MADE_A_VERSION,
)
Index("rounds_by_phase", ROUNDS.c.phase)

# The server's optimiser after a round, for as long as the round's weights are there.
OPTIMIZERS = Table(
    "optimizers",
    METADATA,
    Column("round_id", ForeignKey("rounds.id"), primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

PARTICIPANTS = Table(
    "participants",
    METADATA,
    Column("round_id", ForeignKey("rounds.id"), primary_key=True),
    Column("device", ForeignKey("devices.name"), primary_key=True),
    Column("seat", Integer),
    Column("reported", Boolean, nullable=False),
    # Where the bytes of a training's report are.
    Column("segment", String(64)),
    Column("place", BigInteger),
    Column("length", Integer),
    # What an evaluation's report says.
    Column("evaluation", JSON),
)
Index("participants_by_seat", PARTICIPANTS.c.round_id, PARTICIPANTS.c.seat)

DEVICES = Table(
    "devices",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("secret", LargeBinary, nullable=False),  # SHA-256
    Column("enrolled", Float, nullable=False),
    Column("revoked", Float),
    Column("runtime", String(64), nullable=False),
    Column("seen", Float),
    Column("participated", Float),  # by the server's clock
    Column("reports", Integer, nullable=False),
)

ENROLMENT_CODES = Table(
    "enrolment_codes",
    METADATA,
    Column("code", LargeBinary, primary_key=True),  # SHA-256
    Column("expires", Float, nullable=False),  # by the server's clock
    Column("client", String(64)),  # the only name that it enrols; None for any that is free
    Column("used_by", String(64)),
)
