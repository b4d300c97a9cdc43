"""Weights that are let go of leave no row behind, nor does the optimiser's state, which gets a table of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = depends_on = None

_UNNAMED = {"fk": "weights_of_rounds"}  # what SQLite's key is called while its table is made anew


def upgrade() -> None:
    op.create_table(
        "optimizers",
        sa.Column("round_id", sa.Integer, sa.ForeignKey("rounds.id"), primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.execute("INSERT INTO optimizers SELECT id, optimizer FROM rounds WHERE optimizer IS NOT NULL")
    (key,) = sa.inspect(op.get_bind()).get_foreign_keys("rounds")
    with op.batch_alter_table("rounds", naming_convention=_UNNAMED) as rounds:
        rounds.drop_constraint(key["name"] or _UNNAMED["fk"], type_="foreignkey")
        rounds.drop_column("optimizer")
    op.execute("DELETE FROM weights WHERE data IS NULL")
    with op.batch_alter_table("weights") as weights:
        weights.alter_column("data", existing_type=sa.LargeBinary(), nullable=False)
