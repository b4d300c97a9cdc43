"""Open rounds and their devices, enrolment, and what all servers of a fleet share."""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = depends_on = None


def upgrade() -> None:
    op.drop_index("one_commit_a_round", "rounds")
    op.rename_table("rounds", "old_rounds")
    op.rename_table("weights", "old_weights")
    _create()
    _carry_over(op.get_bind())
    op.drop_table("old_rounds")
    op.drop_table("old_weights")


def _create() -> None:
    op.create_table(
        "weights",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("data", sa.LargeBinary),
    )
    op.create_table(
        "fleet",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("model_id", sa.String(32), nullable=False),
        sa.Column("clock", sa.Float, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("token_key", sa.LargeBinary, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("weights", sa.String(64), sa.ForeignKey("weights.sha256"), nullable=False),
        sa.Column("initial_weights", sa.String(64), sa.ForeignKey("weights.sha256"), nullable=False),
        sa.Column("released", sa.Integer),
        sa.Column("spool", sa.String(32)),
        sa.Column("counts", sa.JSON, nullable=False),
    )
    op.create_table(
        "encoded_weights",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("weights", sa.String(64), nullable=False),
        sa.Column("base", sa.String(64), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "rounds",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("task", sa.String(16), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("opened", sa.Float, nullable=False),
        sa.Column("offered", sa.Integer, nullable=False),
        sa.Column("cohort", sa.Integer, nullable=False),
        sa.Column("reported", sa.Integer, nullable=False),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.Column("weights", sa.String(64), sa.ForeignKey("weights.sha256")),
        sa.Column("started", sa.Float),
        sa.Column("ended", sa.Float),
        sa.Column("seconds", sa.Float),
        sa.Column("loss", sa.Float),
        sa.Column("accuracy", sa.Float),
        sa.Column("examples", sa.BigInteger),
        sa.Column("clients", sa.Integer),
        sa.Column("optimizer", sa.LargeBinary),
    )
    made = sa.text("phase = 'committed' AND task != 'evaluation'")
    op.create_index("one_commit_a_version", "rounds", ["number"], unique=True, sqlite_where=made, postgresql_where=made)
    op.create_index("rounds_by_phase", "rounds", ["phase"])
    op.create_table(
        "devices",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("enrolled", sa.Float, nullable=False),
        sa.Column("revoked", sa.Float),
        sa.Column("runtime", sa.String(64), nullable=False),
        sa.Column("seen", sa.Float),
        sa.Column("participated", sa.Float),
        sa.Column("reports", sa.Integer, nullable=False),
    )
    op.create_table(
        "participants",
        sa.Column("round_id", sa.Integer, sa.ForeignKey("rounds.id"), primary_key=True),
        sa.Column("device", sa.String(64), sa.ForeignKey("devices.name"), primary_key=True),
        sa.Column("seat", sa.Integer),
        sa.Column("reported", sa.Boolean, nullable=False),
        sa.Column("segment", sa.String(64)),
        sa.Column("place", sa.BigInteger),
        sa.Column("length", sa.Integer),
        sa.Column("evaluation", sa.JSON),
    )
    op.create_index("participants_by_seat", "participants", ["round_id", "seat"])
    op.create_table(
        "enrolment_codes",
        sa.Column("code", sa.LargeBinary, primary_key=True),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("client", sa.String(64)),
        sa.Column("used_by", sa.String(64)),
    )


def _carry_over(bind: sa.Connection) -> None:
    """Finished rounds and their weights, from the schema before."""
    old = sa.MetaData()
    old_rounds = sa.Table("old_rounds", old, autoload_with=bind)
    new = sa.MetaData()
    rounds, fleet = (sa.Table(name, new, autoload_with=bind) for name in ("rounds", "fleet"))
    bind.execute(sa.text("INSERT INTO weights SELECT sha256, data FROM old_weights"))
    totals: dict[str, Any] = {}
    latest, first = None, None
    for row in bind.execute(sa.select(old_rounds).order_by(old_rounds.c.id)).mappings().all():
        details = row["details"]
        details = details if isinstance(details, dict) else {}
        if row["outcome"] == "committed":
            latest, first = row, first or row
        if not row["number"]:  # no round, but where the first one started from
            continue
        counts = details.get("counts", {})
        _add(totals, counts)
        bind.execute(
            sa.insert(rounds).values(
                number=row["number"],
                task="training",
                phase=row["outcome"],
                reason=details.get("reason", ""),
                since=0.0,
                opened=0.0,
                offered=counts.get("accepted", 0),
                cohort=counts.get("accepted", 0),
                reported=details.get("clients", 0),
                counts=counts,
                weights=row["weights"],
                started=row["started"],
                ended=row["ended"],
                seconds=details.get("seconds"),
                loss=details.get("loss"),
                examples=details.get("examples"),
                clients=details.get("clients"),
            )
        )
    if latest is not None and first is not None:
        bind.execute(
            sa.insert(fleet).values(
                id=1,
                model_id=latest["model_id"],
                clock=0.0,
                paused=False,
                token_key=secrets.token_bytes(32),
                number=latest["number"],
                weights=latest["weights"],
                initial_weights=first["weights"],
                counts=totals,
            )
        )


def _add(totals: dict[str, Any], counts: dict[str, Any]) -> None:
    for name, value in counts.items():
        if isinstance(value, dict):
            _add(totals.setdefault(name, {}), value)
        else:
            totals[name] = totals.get(name, 0) + value
