"""Ready-made tasks, each with data, a model, and a method and an end that suit them."""

from distbelief.tasks.digits import digits
from distbelief.tasks.registry import TASKS, find
from distbelief.tasks.speech import speech, speech_paper

__all__ = ["TASKS", "digits", "find", "speech", "speech_paper"]
