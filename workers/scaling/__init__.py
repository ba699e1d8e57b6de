"""How many encoder replicas there should be. Pure: figures and a state in; a number, its reason and the next state out.

Comes in: what was seen, in tokens and records, with its age. Goes out: a target between the limits. Never here: a clock, Ray,
Kafka, or an exception, whatever the figures are.
"""

from workers.scaling.figures import Limits, Observation, Reason
from workers.scaling.policy import Decision, State, decide

__all__ = ["Decision", "Limits", "Observation", "Reason", "State", "decide"]
