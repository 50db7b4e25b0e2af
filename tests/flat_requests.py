"""Requests of jobs from flat values: each goes into the group that has the field."""

from pathlib import Path
from typing import Any

from ddimctl.jobs.evaluate.request import EvaluateRequest
from ddimctl.jobs.interpolate.request import InterpolateRequest
from ddimctl.jobs.invert.request import InvertRequest, ReconstructRequest
from ddimctl.jobs.option import make_request, with_fields
from ddimctl.jobs.sample.request import SampleRequest

changed = with_fields


def sample_request(**values: Any) -> SampleRequest:
    return make_request(SampleRequest, **values)


def invert_request(inputs: Any, **values: Any) -> InvertRequest:
    return make_request(InvertRequest, inputs=tuple(inputs), **values)


def reconstruct_request(data: Path, **values: Any) -> ReconstructRequest:
    return make_request(ReconstructRequest, data=data, **values)


def interpolate_request(**values: Any) -> InterpolateRequest:
    return make_request(InterpolateRequest, **values)


def evaluate_request(**values: Any) -> EvaluateRequest:
    return make_request(EvaluateRequest, **values)
