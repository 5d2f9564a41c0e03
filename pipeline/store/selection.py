"""`Selection`, some episodes of a version: looked at, labelled, or committed as a version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.store import derive, tables
from pipeline.store.labels import label_table
from schemas.errors import missing_extra
from schemas.version import Derivation

if TYPE_CHECKING:
    from pipeline.store.reader import Version


class Selection:
    """Some episodes of a version; committing it makes a version that shares all data."""

    def __init__(
        self,
        version: Version,
        mask: np.ndarray,
        derivation: Derivation,
        labels: pa.Table | None = None,
    ) -> None:
        """Args: the version, (episodes,) bool in its order, how they were chosen, new labels."""
        self.version = version
        self.mask = mask
        self.labels = labels
        self.derivation = derivation.model_copy(
            update={"episodes_before": len(mask), "episodes_after": int(mask.sum())}
        )

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __repr__(self) -> str:
        return f"Selection({len(self):,} of {len(self.mask):,} episodes of {self.version!r})"

    def episodes(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns the chosen episodes' rows."""
        return self.version.episodes(columns=columns).filter(pa.array(self.mask))

    def commit(self, branch: str, message: str | None = None) -> Version:
        """Makes the selection the next version of a branch."""
        catalog = self.version.store
        table = tables.episode_table(catalog, self.version.commit).filter(pa.array(self.mask))
        said = message or f"curate {self.version.branch}:{self.version.number}: {_said(self)}"
        commit = derive.commit_selection(
            catalog,
            self.version.commit,
            table,
            self.derivation,
            branch=branch,
            message=said,
            labels=self.labels,
        )
        return self.version.at(commit)

    def annotate(self, *, branch: str | None = None, message: str = "", **labels: Any) -> Version:
        """Commits labels of the chosen episodes, as in `selection.annotate(success=True)`.

        Args:
            branch: where to; by default the version's own, whose head it must be.
            message: one line for the log.
            labels: each one value for all, or a sequence of one per chosen episode.

        Raises:
            UsageError: if a label takes the name of a column that labels may not take.
        """
        ids = self.episodes(columns=["episode_id"])["episode_id"].to_pylist()
        table = label_table(ids, labels)
        how = f"selection {_said(self)}"
        return self.version.annotate(table, branch=branch, message=message, how=how)

    def plot(self, x: str = "length", y: str = "episode_return") -> Any:
        """Returns a matplotlib figure of two columns, chosen episodes against the rest."""
        try:
            from matplotlib.figure import Figure  # noqa: PLC0415 - an optional extra
        except ImportError:
            raise missing_extra("plot", "matplotlib") from None
        table = self.version.episodes(columns=[x, y])
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        values = {name: np.asarray(table[name].to_numpy(), float) for name in (x, y)}
        for label, mask, colour in (("left out", ~self.mask, "0.75"), ("kept", self.mask, "C0")):
            axes.scatter(values[x][mask], values[y][mask], s=12, c=colour, label=label)
        axes.set(xlabel=x, ylabel=y, title=f"{len(self):,} of {len(self.mask):,} episodes")
        axes.legend()
        return figure


def _said(selection: Selection) -> str:
    return selection.derivation.where or f"{len(selection)} episodes"
