"""From the rows of a manifest to a plan: for the dispatcher a whole manifest, for the gateway a small inline job."""

from shared.planning.inline import plan_inline
from shared.planning.planner import Place, PlanRequest, Source, in_words, plan_rows
from shared.planning.rows import Problem, Row

__all__ = ["Place", "PlanRequest", "Problem", "Row", "Source", "in_words", "plan_inline", "plan_rows"]
