"""From the rows of a manifest to a plan: for the dispatcher a whole manifest, for the gateway a small inline job."""

from shared.planning.inline import plan_inline
from shared.planning.planner import Place, PlanRequest, Source, plan_rows
from shared.planning.rows import Problem, Row

__all__ = ["Place", "PlanRequest", "Problem", "Row", "Source", "plan_inline", "plan_rows"]
