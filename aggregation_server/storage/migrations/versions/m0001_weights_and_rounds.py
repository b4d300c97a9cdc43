"""Versions of the weights, and the rounds that made them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = depends_on = None


def upgrade() -> None:
    op.create_table(
        "weights",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "rounds",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("weights", sa.String(64), sa.ForeignKey("weights.sha256"), nullable=False),
        sa.Column("model_id", sa.String(32), nullable=False),
        sa.Column("started", sa.Float, nullable=False),
        sa.Column("ended", sa.Float, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )
    committed = sa.text("outcome = 'committed'")
    op.create_index(
        "one_commit_a_round", "rounds", ["number"], unique=True, sqlite_where=committed, postgresql_where=committed
    )
